// The official Node.js client, unchanged: node openai_sdk.mjs MODEL_URL ECHO_URL. Prints what it got as JSON.
import { createRequire } from "node:module";

// Where it is installed is not above this file.
const OpenAI = createRequire(process.env.CLIENT_MODULES + "/")("openai").default;
const [, , modelUrl, echoUrl] = process.argv;
const real = new OpenAI({ baseURL: modelUrl, apiKey: "any" });
const echo = new OpenAI({ baseURL: echoUrl, apiKey: "any", maxRetries: 0 });
const ask = (content) => [{ role: "user", content }];
const found = {};

const vote = await real.chat.completions.create({ model: "conclave:majority-5", messages: ask("What is 12 + 30?"), seed: 7 });
found.vote = [vote.choices[0].message.content, vote.conclave.planned];

let text = "";
let pieces = 0;
const stream = await real.chat.completions.create({
  model: "conclave-demo", messages: ask("What is 12 + 30?"), stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  const piece = chunk.choices[0]?.delta?.content;
  if (piece) { text += piece; pieces += 1; }
  if (chunk.usage) found.usage = chunk.usage.completion_tokens;
}
found.stream = [text, pieces];

const parameters = { type: "object", properties: { city: { type: "string" } } };
const call = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>';
const runner = echo.chat.completions.runTools({
  model: "fake",
  messages: ask(call),
  tools: [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: ({ city }) => `sun in ${city}` } }],
}, { maxChatCompletions: 1 });
await runner.done().catch(() => {});
found.tool = runner.messages.filter((m) => m.role === "tool").map((m) => m.content);

const kinds = [];
const events = await real.responses.create({ model: "conclave-demo", input: "What is 12 + 30?", stream: true });
for await (const event of events) kinds.push(event.type);
found.kinds = [kinds[0], kinds.at(-1)];
found.response = (await echo.responses.create({ model: "fake", input: "hello" })).output_text;

const vectors = await real.embeddings.create({ model: "conclave-demo", input: "red" });
found.vector = Math.round(1000 * vectors.data[0].embedding.reduce((sum, x) => sum + x * x, 0)) / 1000;

try {
  await echo.chat.completions.create({ model: "gpt-4o", messages: ask("x") });
} catch (error) {
  found.error = [error.constructor.name, error.status, error.code];
}

const leaving = await real.chat.completions.create({ model: "conclave-demo", messages: ask("What is 12 + 30?"), stream: true });
for await (const _ of leaving) { leaving.controller.abort(); break; }
found.left = true;
console.log(JSON.stringify(found));
