import type { Statement, TaskProgram } from './program.ts';

/** A program flattened: loops are jumps, so that a task's place is one number and a stack of counters. */
export type Instruction = Place &
  (
    | { readonly kind: 'statement'; readonly statement: Exclude<Statement, { kind: 'repeat' }> }
    /** Starts a loop; goes to `exit` when its count is 0. */
    | { readonly kind: 'enter-loop'; readonly statement: Extract<Statement, { kind: 'repeat' }>; readonly exit: number }
    /** Ends a round; goes back to `start` while rounds remain. */
    | { readonly kind: 'end-loop'; readonly statement: Extract<Statement, { kind: 'repeat' }>; readonly start: number }
  );

interface Place {
  /** Variables of the loops around the instruction, outermost first; a loop without one has ''. */
  readonly variables: readonly string[];
  /** The nested guest whose code it is. */
  readonly guest?: string;
}

export function flatten(task: TaskProgram): Instruction[] {
  const code: Instruction[] = [];
  const add = (body: readonly Statement[], variables: readonly string[], guest?: string): void => {
    const place = { variables, ...(guest === undefined ? {} : { guest }) };
    for (const statement of body) {
      if (statement.kind !== 'repeat') {
        code.push({ kind: 'statement', statement, ...place });
        if (statement.kind === 'enter') {
          add(statement.body, variables, statement.guest);
          code.push({ kind: 'statement', statement: { kind: 'leave', span: statement.span }, variables });
        } else if (statement.kind === 'smm') {
          add(statement.body, variables);
          code.push({ kind: 'statement', statement: { kind: 'rsm', span: statement.span }, variables });
        }
        continue;
      }
      const at = code.length;
      code.push({ kind: 'enter-loop', statement, exit: -1, variables });
      const inner = [...variables, statement.variable ?? ''];
      add(statement.body, inner, guest);
      code.push({ kind: 'end-loop', statement, start: at + 1, variables: inner });
      code[at] = { kind: 'enter-loop', statement, exit: code.length, variables };
    }
  };
  add(task.body, []);
  return code;
}
