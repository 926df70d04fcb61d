import type { Statement, TaskProgram } from './program.ts';

/** A program flattened: loops are jumps, so that a task's place is one number and a stack of counters. */
export type Instruction =
  | { readonly kind: 'statement'; readonly statement: Exclude<Statement, { kind: 'repeat' }> }
  /** Starts a loop; goes to `exit` when its count is 0. */
  | { readonly kind: 'enter-loop'; readonly statement: Extract<Statement, { kind: 'repeat' }>; readonly exit: number }
  /** Ends a round; goes back to `start` while rounds remain. */
  | { readonly kind: 'end-loop'; readonly statement: Extract<Statement, { kind: 'repeat' }>; readonly start: number };

export function flatten(task: TaskProgram): Instruction[] {
  const code: Instruction[] = [];
  const add = (body: readonly Statement[]): void => {
    for (const statement of body) {
      if (statement.kind !== 'repeat') {
        code.push({ kind: 'statement', statement });
        continue;
      }
      const at = code.length;
      code.push({ kind: 'enter-loop', statement, exit: -1 });
      add(statement.body);
      code.push({ kind: 'end-loop', statement, start: at + 1 });
      code[at] = { kind: 'enter-loop', statement, exit: code.length };
    }
  };
  add(task.body);
  return code;
}
