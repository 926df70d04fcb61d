import type { Program } from '../../engine/program.ts';
import type { HelperPlace } from '../kvm/place.ts';
import { unfit } from '../scenario-kvm/fit.ts';
import { openScenario } from '../scenario-kvm/open.ts';

interface Wanted {
  readonly path: string;
  readonly program: Program;
  /** Steps at most. */
  readonly limit: number;
}

/** What came of a scenario on KVM. */
export interface RanOnKvm {
  readonly ok: boolean;
  readonly steps: number;
  readonly counters: Readonly<Record<string, number>>;
  readonly failures: readonly { readonly line: number; readonly text: string; readonly actual: string }[];
  readonly warnings: readonly {
    readonly line?: number | undefined;
    readonly task: string;
    readonly step: number;
    readonly text: string;
  }[];
  /** Why nothing could run on. */
  readonly stuck?: string;
}

/** What a scenario asks for that no KVM has, told on standard error. @returns whether it can run all the same */
export function fitsKvm(path: string, program: Program): boolean {
  const problems = unfit(program);
  for (const { severity, message, span } of problems)
    console.error(`${path}:${span.line}:${span.column}: ${severity}: ${message}`);
  return !problems.some(({ severity }) => severity === 'error');
}

/** Runs a scenario to its end, and closes the place. @throws Error in words for people */
export async function runOnKvm({ path, program, limit }: Wanted, place: HelperPlace): Promise<RanOnKvm> {
  let opened: Awaited<ReturnType<typeof openScenario>>;
  try {
    opened = await openScenario(program, (text) => process.stderr.write(text), place);
  } catch (error) {
    throw new Error(`${path}: cannot run on KVM: ${(error as Error).message}`);
  }
  const { run, close } = opened;
  try {
    const { machine } = run;
    for (let task = await run.pick(); task; task = await run.pick()) {
      if (machine.steps >= limit)
        throw new Error(`${path}: still running after ${limit} steps: give --max-steps, or end its loops`);
      await run.step(task).catch((error: Error) => {
        throw new Error(`${path}: the machine is lost: ${error.message}`);
      });
    }
    const stuck = run.stuck;
    await run.finish();
    const { failures, warnings } = machine.small;
    return {
      ok: failures.length === 0 && stuck === undefined,
      steps: machine.steps,
      counters: Object.fromEntries(machine.counterList()),
      failures,
      warnings,
      ...(stuck === undefined ? {} : { stuck }),
    };
  } finally {
    await close();
  }
}

/** `kvm-mmu run --target kvm`: the exit status, 3 when it cannot run here. */
export async function runAndTell(wanted: Wanted & { readonly json: boolean }, place: HelperPlace): Promise<number> {
  const { path } = wanted;
  if (!fitsKvm(path, wanted.program)) {
    place.close();
    return 2;
  }
  let ran: RanOnKvm;
  try {
    ran = await runOnKvm(wanted, place);
  } catch (error) {
    console.error((error as Error).message);
    return 3;
  }
  if (wanted.json) console.log(JSON.stringify({ target: 'kvm', ...ran }));
  else tell(path, ran);
  return ran.ok ? 0 : 1;
}

function tell(path: string, { ok, steps, counters, failures, warnings, stuck }: RanOnKvm): void {
  for (const { line, task, step, text } of warnings)
    console.error(`${path}:${line === undefined ? '' : `${line}:`} warning: ${task} at step ${step}: ${text}`);
  for (const { line, text, actual } of failures) console.error(`${path}:${line}: ${text}: ${actual}`);
  if (stuck !== undefined) console.error(`${path}: nothing can run: ${stuck}`);
  console.log(`${steps} steps on KVM`);
  for (const [name, value] of Object.entries(counters)) if (value > 0) console.log(`${name.padEnd(20)} ${value}`);
  const count = failures.length;
  const what = count === 1 ? 'one thing that the scenario asks for' : `${count} things that the scenario asks for`;
  console.log(ok ? 'ok' : stuck === undefined ? `failed: ${what}` : 'failed: nothing can run');
}
