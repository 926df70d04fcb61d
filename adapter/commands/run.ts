import { withValues } from '../../engine/explore/explore.ts';
import { parseSchedule, ScheduleError } from '../../engine/explore/schedule-text.ts';
import { project } from '../../engine/history/project.ts';
import { type Machine, MachineError } from '../../engine/machine.ts';
import { hex } from '../../engine/memory/words.ts';
import { hashTables } from '../../engine/pgtable/hash.ts';
import { PgtableError } from '../../engine/pgtable/tables.ts';
import { Run } from '../../engine/run.ts';
import { thisMachine } from '../kvm/place.ts';
import { readPolicies, withPolicies } from './policy-option.ts';
import { runAndTell } from './run-kvm.ts';
import { readScenario, stepLimit } from './scenario-file.ts';
import { readOptions, UsageError } from './usage.ts';

/** `kvm-mmu run`: a scenario in the emulator, or on KVM. The exit status. */
export function run(args: string[]): number | Promise<number> {
  const { values, positionals } = readOptions({
    args,
    allowPositionals: true,
    options: {
      json: { type: 'boolean' },
      trace: { type: 'boolean' },
      'max-steps': { type: 'string' },
      target: { type: 'string' },
      helper: { type: 'string' },
      policy: { type: 'string', multiple: true },
      schedule: { type: 'string' },
    },
  });
  const [path] = positionals;
  if (path === undefined || positionals.length > 1) throw new UsageError('run takes one file');
  const limit = stepLimit(values['max-steps']);
  const written = readScenario(path);
  const target = values.target ?? 'emulator';
  if (target !== 'emulator' && target !== 'kvm')
    throw new UsageError(`--target must be emulator or kvm, not ${target}`);
  if (target === 'emulator' && values.helper !== undefined) throw new UsageError('--helper is for --target kvm');
  if (target === 'kvm' && values.trace)
    throw new UsageError('--trace is the emulator’s: KVM’s own tracepoints are the host’s');
  if (!written) return 2;
  if (target === 'kvm' && values.policy !== undefined)
    throw new UsageError('--policy is for the emulator: a real KVM has no policies to choose');
  if (target === 'kvm' && values.schedule !== undefined)
    throw new UsageError('--schedule is for the emulator: who runs on KVM the host’s scheduler decides');
  if (target === 'kvm')
    return runAndTell({ path, program: written, limit, json: values.json === true }, thisMachine(values.helper));
  const { fixed, compared } = readPolicies(values.policy ?? [], 'NAME=VALUE here, such as --policy conversion=rfc-v8');
  if (compared) throw new UsageError(`--policy ${compared.policy}: a run has one value; kvm-mmu compare takes more`);
  const program = withPolicies(written, fixed);
  let session: Run;
  try {
    const plan = values.schedule === undefined ? [] : parseSchedule(program, values.schedule);
    session = new Run(plan.length === 0 ? program : withValues(program), undefined, plan);
  } catch (error) {
    if (error instanceof ScheduleError) throw new UsageError(`--schedule: ${error.message}`);
    if (!(error instanceof MachineError)) throw error;
    console.error(`${path}: ${error.message}`);
    return 2;
  }
  const unfollowed = session.followPlan(limit);
  if (unfollowed !== undefined) {
    console.error(`${path}: schedule: ${unfollowed}`);
    return 3;
  }
  if (!session.runToEnd(limit - session.machine.steps)) {
    console.error(`${path}: still running after ${limit} steps: give a larger --max-steps, or end its loops`);
    return 3;
  }
  const { machine } = session;
  const stuck = session.stuck();
  const nothing = session.isCircling ? 'nothing gets on' : 'nothing can run';
  const { failures, hazards } = machine.small;
  if (values.trace) {
    for (const { step, task, event, text: words } of project(machine))
      console.log(`${task.replace(' ', '-').padStart(16)} [000] ${String(step).padStart(8)}: ${event}: ${words}`);
  }
  const inUse = machine.directRoots().filter(({ rootCount }) => rootCount > 0);
  const tables = inUse.map(({ pfn }) => ({ root: hex(BigInt(pfn) << 12n), hash: hashOf(machine, pfn) }));
  const ok = failures.length === 0 && stuck === undefined;
  if (values.json) {
    console.log(
      JSON.stringify({
        ok,
        steps: machine.steps,
        counters: session.counters(),
        failures,
        warnings: machine.small.warnings,
        hazards,
        ...(stuck === undefined ? {} : { stuck }),
        tables,
      }),
    );
  } else {
    for (const { line, task, step, text: words } of machine.small.warnings)
      console.error(`${path}:${line === undefined ? '' : `${line}:`} warning: ${task} at step ${step}: ${words}`);
    for (const { hazard, text: words } of hazards) console.error(`${path}: hazard: ${hazard}: ${words}`);
    for (const failure of failures) console.error(`${path}:${failure.line}: ${failure.text}: ${failure.actual}`);
    if (stuck !== undefined) console.error(`${path}: ${nothing}: ${stuck}`);
    console.log(`${machine.steps} steps`);
    for (const [name, value] of machine.counterList()) if (value > 0) console.log(`${name.padEnd(20)} ${value}`);
    for (const { root, hash } of tables) console.log(`${'tables'.padEnd(20)} ${hash} (root ${root})`);
    const what =
      failures.length === 1
        ? 'one thing that the scenario asks for'
        : `${failures.length} things that the scenario asks for`;
    console.log(ok ? 'ok' : stuck === undefined ? `failed: ${what}` : `failed: ${nothing}`);
  }
  return ok ? 0 : 1;
}

/** The hash of a tree, or what is wrong with tables that a scenario has damaged. */
function hashOf(machine: Machine, root: number): string {
  try {
    return hashTables(machine.memory, { format: machine.secondFormat, root });
  } catch (error) {
    if (error instanceof PgtableError) return `damaged: ${error.message}`;
    throw error;
  }
}
