// Loads GGUF files in llama.cpp, on the CPU, and keeps what it computes of tokens and makes of texts.
//
// node llama.mjs JOBS.json OUT.json        where JOBS is a list of {"file", "tokens", "texts", "sentences"}
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [jobs, out] = process.argv.slice(2);
const messages = [];
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.warn, logger: (level, text) => messages.push(`${level}: ${text.trim()}`)
});

async function nextTokens(sequence, tokens) {
    // Every position: what comes next, as logits.
    const input = tokens.map((token) => [token, {generateNext: {logits: true}}]);
    const evaluated = await sequence.controlledEvaluate(input);
    return evaluated.map(({next}) => {
        const row = [];
        for (const [token, logit] of next.logits) row[token] = logit;
        return row;
    });
}

async function run(job) {
    const model = await llama.loadModel({modelPath: job.file, useMmap: true});
    const found = {architecture: model.fileInfo.metadata.general.architecture};
    if (job.texts) found.texts = job.texts.map((text) => model.tokenize(text, true));
    if (job.tokens) {
        const context = await model.createContext({contextSize: job.context ?? 64, batchSize: 64, flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"});
        found.logits = await nextTokens(context.getSequence(), job.tokens);
        await context.dispose();
    }
    if (job.sentences) {
        const context = await model.createEmbeddingContext({contextSize: 64, batchSize: 64});
        found.embeddings = [];
        for (const sentence of job.sentences) found.embeddings.push((await context.getEmbeddingFor(sentence)).vector);
        found.sentences = job.sentences.map((sentence) => model.tokenize(sentence));
        await context.dispose();
    }
    await model.dispose();
    return found;
}

const results = [];
for (const job of JSON.parse(readFileSync(jobs, "utf8"))) {
    messages.length = 0;
    try {
        results.push(await run(job));
    } catch (error) {
        results.push({error: `${error.message ?? error}\n${messages.slice(-5).join("\n")}`});
    }
    // After each: llama.cpp ends the process where it is given what it cannot compute.
    writeFileSync(out, JSON.stringify(results));
}
process.exit(0);
