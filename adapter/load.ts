import { withValues } from '../engine/explore/explore.ts';
import { parseSchedule, ScheduleError } from '../engine/explore/schedule-text.ts';
import { choosePolicy, DEFAULT_POLICIES } from '../engine/policies.ts';
import type { Program } from '../engine/program.ts';
import { type Diagnostic, parseScenario } from '../scenario/index.ts';
import type { KvmLaunch } from './kvm/launch.ts';
import type { KvmPrinter } from './kvm/printer.ts';
import type { LabPrinter } from './lab/printer.ts';
import type { ImageLaunch, LaunchArguments, TraceLaunch } from './launch.ts';
import { RequestError } from './request-error.ts';
import { unfit, unfitWords } from './scenario-kvm/fit.ts';
import { EmulatorTarget } from './targets/emulator.ts';
import type { Target } from './targets/target.ts';

/** What a session needs of the place it runs in: Node, or a browser's Worker. */
export interface SessionHost {
  /** @throws with a message for people when the file cannot be read. */
  readText(path: string): Promise<string>;
  /** Resolves once waiting messages have been handled. */
  yieldToLoop(): Promise<void>;
  /** Opens an image of memory; absent where there are no files. @throws with a message for people */
  openImage?(launch: ImageLaunch): Target;
  /** Opens a recording of KVM's events; absent where there are no files. @throws with a message for people */
  openTrace?(launch: TraceLaunch, say: Say): Target;
  /** What real machine the session will be of: some clients hear of filters only before they say what to launch. */
  readonly onKvm?: 'guest' | 'scenario' | 'recording';
  /** Makes or reaches a machine under KVM; absent where no process can be started. @throws with a message for people */
  openKvm?(launch: KvmLaunch, say: Say): Promise<Target>;
  /** Makes a machine under KVM for a scenario; absent as `openKvm`. @throws with a message for people */
  openScenario?(
    program: Program,
    say: Say,
    launch: Pick<LaunchArguments, 'lab' | 'tables' | 'record'>,
  ): Promise<Target>;
}

/** Where words go while a target is loaded and runs. */
export interface Say extends KvmPrinter, LabPrinter {
  print(text: string, category?: 'console' | 'stderr', line?: number): void;
}

const NO_PROCESSES = 'KVM cannot be used here: no process can be started';

/** What a launch configuration asks for. @throws with a message for people */
export async function loadTarget(launch: LaunchArguments, host: SessionHost, say: Say): Promise<Target> {
  const { program: path, image, trace, kvm, target, history, policies, schedule } = launch;
  if (kvm) {
    if (!host.openKvm) throw new RequestError(NO_PROCESSES);
    return host.openKvm(kvm, say);
  }
  if (trace) {
    if (!host.openTrace) throw new RequestError('recordings cannot be opened here: there are no files');
    return host.openTrace(trace, say);
  }
  if (image) {
    if (!host.openImage) throw new RequestError('images cannot be opened here: there are no files');
    return host.openImage(image);
  }
  const { program, diagnostics } = parseScenario(await host.readText(path));
  printDiagnostics(path, diagnostics, say);
  if (!program) {
    const errors = diagnostics.filter((diagnostic) => diagnostic.severity === 'error');
    const first = errors[0]!;
    const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : '';
    throw new RequestError(`${path}:${first.span.line}: ${first.message}${more}`);
  }
  const configured = withPolicies(program, policies);
  if (target !== 'kvm') {
    const yieldToLoop = (): Promise<void> => host.yieldToLoop();
    if (schedule === undefined) return new EmulatorTarget(configured, history, yieldToLoop);
    return new EmulatorTarget(withValues(configured), history, yieldToLoop, planOf(configured, schedule));
  }
  if (!host.openScenario) throw new RequestError(NO_PROCESSES);
  const problems = unfit(configured);
  printDiagnostics(path, problems, say);
  const errors = problems.filter(({ severity }) => severity === 'error');
  if (errors.length > 0) throw new RequestError(unfitWords(errors));
  return host.openScenario(configured, say, launch);
}

function printDiagnostics(
  path: string,
  diagnostics: readonly Pick<Diagnostic, 'severity' | 'message' | 'span'>[],
  say: Say,
): void {
  for (const { severity, message, span } of diagnostics) {
    const category = severity === 'error' ? 'stderr' : 'console';
    say.print(`${path}:${span.line}:${span.column}: ${severity}: ${message}\n`, category, span.line);
  }
}

function planOf(program: Program, schedule: string): number[] {
  try {
    return parseSchedule(program, schedule);
  } catch (error) {
    if (error instanceof ScheduleError) throw new RequestError(`"schedule": ${error.message}`);
    throw error;
  }
}

function withPolicies(program: Program, policies: LaunchArguments['policies']): Program {
  let chosen = program.machine.policies ?? DEFAULT_POLICIES;
  for (const [name, value] of Object.entries(policies)) {
    const next = choosePolicy(chosen, name, value, program.machine.vm);
    if ('error' in next) throw new RequestError(next.error);
    chosen = next;
  }
  return { ...program, machine: { ...program.machine, policies: chosen } };
}
