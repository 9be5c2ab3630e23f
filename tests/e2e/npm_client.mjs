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
assert.ok(usage.prompt_tokens_details.cached_tokens > 0, "the same prompt was read a second time");
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
assert.equal(usage.total_tokens, whole.usage.total_tokens);

const completion = await client.completions.create({ model: "base", prompt: "Why?", max_tokens: 4 });
assert.equal(typeof completion.choices[0].text, "string");

const tool = { type: "function", function: { name: "book", parameters: { type: "object" } } };
await assert.rejects(
  () => client.chat.completions.create({ ...asked, tools: [tool] }),
  (error) =>
    error instanceof OpenAI.BadRequestError &&
    error.code === "unsupported_field" &&
    error.param === "tools",
);
await client.chat.completions.create({ ...asked, tools: [tool], tool_choice: "none" });

const schema = {
  type: "object",
  properties: { urgent: { type: "boolean" } },
  required: ["urgent"],
  additionalProperties: false,
};
const structured = await client.chat.completions.create({
  ...asked,
  max_completion_tokens: 64,
  response_format: { type: "json_schema", json_schema: { name: "triage", strict: true, schema } },
});
assert.equal(typeof JSON.parse(structured.choices[0].message.content).urgent, "boolean");

const scored = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
assert.ok(scored.choices[0].logprobs.content.length > 0);
assert.ok(scored.choices[0].logprobs.content.every((token) => token.top_logprobs.length === 2));

const response = await client.responses.create({ model: "derm", input: "Why?", max_output_tokens: 4 });
assert.equal(typeof response.output_text, "string");
console.log(JSON.stringify({ tests: 9 }));
