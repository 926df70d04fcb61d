import type { DebugProtocol } from '@vscode/debugprotocol';
import { hex } from '../engine/memory/words.ts';
import type { Task } from '../engine/operation.ts';
import { listing } from '../engine/queries/listing.ts';
import { listingSource } from './sources.ts';
import type { GuestSide } from './targets/guest.ts';
import type { Target } from './targets/target.ts';

type FrameId = (depth: number) => number;

/** Depth of the statement below the functions of the emulator, or of a CPU that stands still. */
const BOTTOM = -1;
/** Depth of the innermost frame of guest code: callers are below it, as on the emulator's stacks. */
const INNERMOST = 500;

/** A task's frames, the innermost first. `id` numbers them by their depth. */
export function stackFrames(
  target: Target,
  task: Task,
  id: FrameId,
  program: DebugProtocol.Source,
): DebugProtocol.StackFrame[] {
  const { guest, about } = target;
  if (guest) return guestFrames(guest, task, id);
  const bottom = about === undefined ? statementFrame(target, task, id, program) : stillFrame(target, task, id);
  return [...functionFrames(task, id), bottom];
}

/** KVM's functions in progress, in the emulator. */
function functionFrames(task: Task, id: FrameId): DebugProtocol.StackFrame[] {
  const frames = task.stack.map((frame, depth): DebugProtocol.StackFrame => {
    const top = depth === task.stack.length - 1;
    const { stepLines } = listing(frame.fn);
    // A caller has moved past the step that called; it is shown there until the callee returns.
    const step = Math.min(top ? frame.step : frame.step - 1, stepLines.length - 1);
    return { id: id(depth), name: frame.fn, line: stepLines[step]!, column: 3, source: listingSource(frame.fn) };
  });
  return frames.reverse();
}

/** The statement that a scenario's task has come to. */
function statementFrame(
  { machine }: Target,
  task: Task,
  id: FrameId,
  source: DebugProtocol.Source,
): DebugProtocol.StackFrame {
  const code = machine.code[task.id]!;
  const instruction = code[Math.min(task.pc, code.length - 1)];
  return {
    id: id(BOTTOM),
    name: task.state === 'done' ? `${task.name} has ended` : task.name,
    line: machine.currentLine(task) ?? instruction?.statement.span.endLine ?? 1,
    column: instruction?.statement.span.column ?? 1,
    source,
  };
}

/** A CPU of a machine that does not run. */
function stillFrame({ machine }: Target, task: Task, id: FrameId): DebugProtocol.StackFrame {
  const { stages, second } = machine.mirror!.regimes[task.vcpu]!;
  const formats = [...stages, ...(second ? [second] : [])].map(({ tree }) => tree.format.spec.title);
  const name = [...new Set(formats)].join(' on ') || 'paging off';
  return { id: id(BOTTOM), name, line: 0, column: 0, presentationHint: 'label' };
}

function guestFrames(guest: GuestSide, task: Task, id: FrameId): DebugProtocol.StackFrame[] {
  return guest.frames(task.vcpu).map(({ name, address, path, line, sourceReference }, depth) => ({
    id: id(INNERMOST - depth),
    name,
    line: line ?? 0,
    column: 0,
    ...(guest.recorded ? {} : { instructionPointerReference: hex(address) }),
    ...(path === undefined
      ? {}
      : { source: { name: path.replace(/^.*[/\\]/, ''), path, ...(sourceReference ? { sourceReference } : {}) } }),
  }));
}
