// What models cost and lose in llama.cpp, several in turn: loss over windows of tokens, and time per token.
//
// node serving.mjs JOB.json OUT.json        where JOB is {"files", "windows", "rounds", "generate", "threads"}
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [file, out] = process.argv.slice(2);
const job = JSON.parse(readFileSync(file, "utf8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error, maxThreads: job.threads});

// Negative log-likelihood of each token but the first, in nats.
async function loss(model) {
    const length = Math.max(...job.windows.map((window) => window.length));
    let [sum, count] = [0, 0];
    for (const window of job.windows) {
        const context = await model.createContext({contextSize: length + 8, batchSize: length, threads: job.threads});
        const input = window.map((token) => [token, {generateNext: {logits: true}}]);
        const evaluated = await context.getSequence().controlledEvaluate(input.slice(0, -1));
        evaluated.forEach(({next}, at) => {
            const logits = [...next.logits.values()];
            const most = logits.reduce((a, b) => Math.max(a, b));
            const total = logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
            sum += most + Math.log(total) - next.logits.get(window[at + 1]);
            count += 1;
        });
        await context.dispose();
    }
    return sum / count;
}

// Seconds for a prompt, and for each token after it.
async function time(model) {
    const prompt = job.windows[0];
    const context = await model.createContext({contextSize: prompt.length + job.generate + 8, batchSize: prompt.length, threads: job.threads});
    const sequence = context.getSequence();
    const begun = performance.now();
    let [first, count] = [0, 0];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        if (count === 0) first = performance.now();
        count += 1;
        if (count > job.generate) break;
    }
    const seconds = {prompt: (first - begun) / 1000, token: (performance.now() - first) / 1000 / (count - 1)};
    await context.dispose();
    return seconds;
}

const models = [];
for (const path of job.files) models.push(await llama.loadModel({modelPath: path}));
const found = models.map((model) => ({architecture: model.fileInfo.metadata.general.architecture, prompt: [], token: []}));
for (const [at, model] of models.entries()) found[at].loss = await loss(model);
for (let round = 0; round <= job.rounds; round += 1) {
    for (const [at, model] of models.entries()) {
        const {prompt, token} = await time(model);
        // The first warms up.
        if (round > 0) {
            found[at].prompt.push(prompt);
            found[at].token.push(token);
        }
    }
}
writeFileSync(out, JSON.stringify(found));
process.exit(0);
