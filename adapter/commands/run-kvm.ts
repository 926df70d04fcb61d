import type { Program } from '../../engine/program.ts';
import { unfit } from '../scenario-kvm/fit.ts';
import { openScenario } from '../scenario-kvm/open.ts';

interface Wanted {
  readonly path: string;
  readonly program: Program;
  readonly limit: number;
  readonly json: boolean;
  readonly helper: string | undefined;
}

/** `kvm-mmu run --target kvm`: the exit status, 3 when it cannot run here. */
export async function runOnKvm({ path, program, limit, json, helper }: Wanted): Promise<number> {
  const problems = unfit(program);
  for (const { severity, message, span } of problems)
    console.error(`${path}:${span.line}:${span.column}: ${severity}: ${message}`);
  if (problems.some(({ severity }) => severity === 'error')) return 2;
  let opened: Awaited<ReturnType<typeof openScenario>>;
  try {
    opened = await openScenario(program, (text) => process.stderr.write(text), helper);
  } catch (error) {
    console.error(`${path}: cannot run on KVM: ${(error as Error).message}`);
    return 3;
  }
  const { run, close } = opened;
  try {
    const { machine } = run;
    for (let task = await run.pick(); task; task = await run.pick()) {
      if (machine.steps >= limit) {
        console.error(`${path}: still running after ${limit} steps: give --max-steps, or end its loops`);
        return 3;
      }
      await run.step(task);
    }
    const stuck = run.stuck;
    await run.finish();
    const { failures, warnings } = machine.small;
    const ok = failures.length === 0 && stuck === undefined;
    const counters = Object.fromEntries(machine.counterList());
    if (json) {
      const extra = stuck === undefined ? {} : { stuck };
      console.log(JSON.stringify({ ok, target: 'kvm', steps: machine.steps, counters, failures, warnings, ...extra }));
      return ok ? 0 : 1;
    }
    for (const { line, task, step, text } of warnings)
      console.error(`${path}:${line === undefined ? '' : `${line}:`} warning: ${task} at step ${step}: ${text}`);
    for (const { line, text, actual } of failures) console.error(`${path}:${line}: ${text}: ${actual}`);
    if (stuck !== undefined) console.error(`${path}: nothing can run: ${stuck}`);
    console.log(`${machine.steps} steps on KVM`);
    for (const [name, value] of Object.entries(counters)) if (value > 0) console.log(`${name.padEnd(20)} ${value}`);
    const count = failures.length;
    const what = count === 1 ? 'one thing that the scenario asks for' : `${count} things that the scenario asks for`;
    console.log(ok ? 'ok' : stuck === undefined ? `failed: ${what}` : 'failed: nothing can run');
    return ok ? 0 : 1;
  } catch (error) {
    console.error(`${path}: the machine is lost: ${(error as Error).message}`);
    return 3;
  } finally {
    close();
  }
}
