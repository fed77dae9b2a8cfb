// graphile-worker beside ledgerbeam's messages: does what benchmarks/peers.py asks for by lines of
// its input.
//
// "schedule COUNT DUE" adds jobs for a moment in milliseconds, "work COUNT" works them off, "late
// COUNT EVERY" adds one every so many milliseconds, and gives milliseconds from due time to work.

import readline from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Logger, WorkerPreset, makeWorkerUtils, run } from "graphile-worker";

const PAYERS = 10_000;
const BATCH = 1_000;

const logger = new Logger(() => (level, message) => {
  if (level === "error") process.stderr.write(`${message}\n`);
});
const preset = {
  extends: [WorkerPreset],
  worker: {
    connectionString: process.argv[2],
    concurrentJobs: 24,
    maxPoolSize: 24,
    // What its documentation names for throughput.
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  },
};
const utils = await makeWorkerUtils({ preset });
await utils.migrate();

async function schedule(count, due) {
  for (let start = 0; start < count; start += BATCH) {
    const jobs = [];
    for (let n = start; n < Math.min(start + BATCH, count); n += 1) {
      const payload = { request: n, payer: `P${n % PAYERS}` };
      jobs.push({ identifier: "payment-due", payload, runAt: due });
    }
    await utils.addJobs(jobs);
  }
}

// Does something while jobs are worked, and waits for the end of so many.
async function working(count, during) {
  const late = [];
  let finish;
  const done = new Promise((resolve) => {
    finish = resolve;
  });
  const handle = async (payload, helpers) => {
    late.push(Date.now() - new Date(helpers.job.run_at).getTime());
    await helpers.query("UPDATE customer SET handled = handled + 1 WHERE id = $1", [payload.payer]);
    if (late.length === count) finish();
  };
  const runner = await run({ preset, taskList: { "payment-due": handle } });
  await during();
  await done;
  await runner.stop();
  return late;
}

const verbs = {
  schedule: async (count, due) => {
    await schedule(count, new Date(due));
    return [];
  },
  work: async (count) => {
    await working(count, async () => {});
    return [];
  },
  late: (count, every) =>
    working(count, async () => {
      for (let n = 0; n < count; n += 1) {
        await schedule(1, new Date(Date.now() + 0.7 * every));
        await sleep(every);
      }
    }),
};
console.log(JSON.stringify("ready"));
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [verb, count, number] = line.split(" ");
  console.log(JSON.stringify(await verbs[verb](Number(count), Number(number))));
}
await utils.release();
