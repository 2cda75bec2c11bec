// Follows the OPC UA server for as long as it is asked to: node opcua_follow.js URL CERTIFICATE KEY URI FOLDER
// Says each part once, as a line with its sequence: by events, and what it has missed by ResultsAfter.
const opcua = require("node-opcua-client");
const { OPCUACertificateManager } = require("node-opcua-certificate-manager");

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
let epoch = "";
let newest = 0;

function tell(sequence) {
  if (sequence <= newest) return;
  newest = sequence;
  console.log(`part ${sequence}`);
}

async function missed(session, ours) {
  for (;;) {
    const answer = await session.call({
      objectId: session.agent,
      methodId: `ns=${ours};s=ResultsAfter`,
      inputArguments: [
        { dataType: opcua.DataType.String, value: epoch },
        { dataType: opcua.DataType.UInt64, arrayType: opcua.VariantArrayType.Scalar, value: [0, newest] },
        { dataType: opcua.DataType.UInt32, value: 500 },
      ],
    });
    const value = answer.outputArguments[0] && answer.outputArguments[0].value;
    const rows = Array.from(value || []).map((row) => JSON.parse(row));
    if (!rows.length) return;
    for (const row of rows) {
      epoch = row.epoch;
      tell(row.sequence);
    }
  }
}

async function follow(options, url) {
  const client = opcua.OPCUAClient.create(options);
  client.on("backoff", () => {});
  const lost = new Promise((resolve) => client.on("connection_lost", resolve));
  try {
    await client.connect(url);
    const session = await client.createSession();
    const namespaces = await session.readNamespaceArray();
    const ours = namespaces.indexOf("urn:atac:agent");
    const objects = (await session.browse("ns=0;i=85")).references;
    const named = (name) => objects.find((each) => each.browseName.name === name).nodeId;
    session.agent = named("Agent");
    const subscription = await session.createSubscription2({
      requestedPublishingInterval: 200,
      requestedLifetimeCount: 100,
      requestedMaxKeepAliveCount: 5,
      maxNotificationsPerPublish: 100,
      publishingEnabled: true,
      priority: 1,
    });
    const gone = new Promise((resolve) => subscription.on("terminated", resolve));
    const filter = opcua.constructEventFilter([`${ours}:Sequence`]);
    const item = await subscription.monitor(
      { nodeId: named("VisionSystem"), attributeId: opcua.AttributeIds.EventNotifier },
      { samplingInterval: 0, discardOldest: true, queueSize: 100, filter },
      opcua.TimestampsToReturn.Both,
    );
    let busy = missed(session, ours);
    let failed;
    const broken = new Promise((resolve) => (failed = resolve));
    item.on("changed", (fields) => {
      const value = fields[0].value;
      const sequence = Array.isArray(value) ? value[0] * 4294967296 + value[1] : Number(value);
      busy = busy
        .then(() => (sequence > newest + 1 ? missed(session, ours) : tell(sequence)))
        .catch(failed);
    });
    busy.catch(failed);
    console.log("connected");
    const error = await Promise.race([lost, gone, broken]);
    if (error instanceof Error) throw error;
  } finally {
    await Promise.race([client.disconnect().catch(() => {}), sleep(2000)]);
  }
}

async function main([url, certificateFile, privateKeyFile, applicationUri, rootFolder]) {
  const clientCertificateManager = new OPCUACertificateManager({
    rootFolder,
    automaticallyAcceptUnknownCertificate: true,
  });
  await clientCertificateManager.initialize();
  const options = {
    applicationUri,
    certificateFile,
    privateKeyFile,
    clientCertificateManager,
    securityMode: opcua.MessageSecurityMode.SignAndEncrypt,
    securityPolicy: opcua.SecurityPolicy.Basic256Sha256,
    endpointMustExist: false,
    connectionStrategy: { maxRetry: 0 },
  };
  process.stdin.on("end", () => process.exit(0)).resume();
  for (;;) {
    try {
      await follow(options, url);
    } catch (error) {
      console.log(`again ${error.message.split("\n")[0]}`);
    }
    await sleep(500);
  }
}

main(process.argv.slice(2));
