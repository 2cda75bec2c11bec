// Decodes payloads of Sparkplug B, one a line in base64, into JSON, one a line.
const payloads = require("sparkplug-payload").get("spBv1.0");
const plain = (_key, value) =>
  typeof value === "bigint" || (value && value.toNumber) ? Number(value) : value;
const lines = require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean);
for (const line of lines) {
  console.log(JSON.stringify(payloads.decodePayload(Buffer.from(line, "base64")), plain));
}
