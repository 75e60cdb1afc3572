// Encodes texts by a folder with an ONNX graph in transformers.js: token ids, and hidden states averaged over them.
//
// node sentences.mjs JOB.json OUT.json        where JOB is {"folder", "model", "texts"}
import {readFileSync, writeFileSync} from "node:fs";
import {AutoTokenizer, env, pipeline} from "@huggingface/transformers";

const [file, out] = process.argv.slice(2);
const job = JSON.parse(readFileSync(file, "utf8"));
env.localModelPath = job.folder;
env.allowRemoteModels = false;

const tokenizer = await AutoTokenizer.from_pretrained(job.model);
const extractor = await pipeline("feature-extraction", job.model, {dtype: "fp32"});
const found = {version: env.version, ids: [], embeddings: []};
for (const text of job.texts) {
    found.ids.push(tokenizer.encode(text));
    const result = await extractor(text, {pooling: "mean", normalize: false});
    found.embeddings.push(Array.from(result.data));
}
writeFileSync(out, JSON.stringify(found));
