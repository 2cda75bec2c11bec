// A client of the OPC UA server, of another make: node opcua.js URL CERTIFICATE KEY URI FOLDER
// Says "ready", and then as JSON what the first event and the variables tell.
const opcua = require("node-opcua-client");
const { OPCUACertificateManager } = require("node-opcua-certificate-manager");

async function main([url, certificateFile, privateKeyFile, applicationUri, rootFolder]) {
  const clientCertificateManager = new OPCUACertificateManager({
    rootFolder,
    automaticallyAcceptUnknownCertificate: true,
  });
  await clientCertificateManager.initialize();
  const client = opcua.OPCUAClient.create({
    applicationUri,
    certificateFile,
    privateKeyFile,
    clientCertificateManager,
    securityMode: opcua.MessageSecurityMode.SignAndEncrypt,
    securityPolicy: opcua.SecurityPolicy.Basic256Sha256,
    endpointMustExist: false,
    connectionStrategy: { maxRetry: 3 },
  });
  await client.connect(url);
  const session = await client.createSession();
  const namespaces = await session.readNamespaceArray();
  const ours = namespaces.indexOf("urn:atac:agent");
  const objects = await session.browse("ns=0;i=85");
  const system = objects.references.find((each) => each.browseName.name === "VisionSystem").nodeId;
  const subscription = await session.createSubscription2({
    requestedPublishingInterval: 50,
    requestedLifetimeCount: 1000,
    requestedMaxKeepAliveCount: 20,
    maxNotificationsPerPublish: 100,
    publishingEnabled: true,
    priority: 1,
  });
  const vision = namespaces.indexOf("http://opcfoundation.org/UA/MachineVision");
  const filter = opcua.constructEventFilter(["Message", `${ours}:Score`, `${vision}:PartId`]);
  const item = await subscription.monitor(
    { nodeId: system, attributeId: opcua.AttributeIds.EventNotifier },
    { samplingInterval: 0, discardOldest: true, queueSize: 100, filter },
    opcua.TimestampsToReturn.Both,
  );
  item.on("changed", async (fields) => {
    const [message, score, part] = fields.map((each) => each.value);
    const last = await session.read({ nodeId: `ns=${ours};s=Last.PartId`, attributeId: 13 });
    const told = { message: message.text, score, part: part && part.id, last: last.value.value };
    console.log(JSON.stringify(told));
    await client.disconnect();
    process.exit(0);
  });
  console.log("ready");
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
