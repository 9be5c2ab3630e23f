// OpenAI's npm client against a running clinic: node npm_client.mjs http://HOST:PORT/v1
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "I have red itchy patches on my elbows: is it eczema?" }];
const asked = { model: "auto", messages, max_completion_tokens: 8 };

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.deepEqual(names, ["auto", "derm", "cardio", "base"]);

const whole = await client.chat.completions.create(asked);
assert.equal(whole.model, "derm");
assert.equal(whole.polyclinic.specialty, "dermatology");
assert.equal(whole._request_id, whole.polyclinic.request_id);

const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);

const completion = await client.completions.create({ model: "base", prompt: "Why?", max_tokens: 4 });
assert.equal(typeof completion.choices[0].text, "string");

await assert.rejects(
  () => client.chat.completions.create({ ...asked, n: 2 }),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "unsupported_field",
);
console.log(JSON.stringify({ tests: 5 }));
