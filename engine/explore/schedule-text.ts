import type { Program } from '../program.ts';
import type { Schedule } from './schedule.ts';

export class ScheduleError extends Error {}

/** How tasks are called in schedules: `vcpu0`, and a host’s task by its name. */
export function taskKeys({ tasks }: Program): string[] {
  return tasks.map(({ kind, name }) => (kind === 'vcpu' ? `vcpu${name}` : name));
}

/** `vcpu0:56 vmm:14`: who makes how many steps, one after the other. */
export function scheduleText(program: Program, { runs }: Pick<Schedule, 'runs'>): string {
  const keys = taskKeys(program);
  return runs.map(({ task, steps }) => `${keys[task]}:${steps}`).join(' ');
}

/** Steps that a schedule may have: a session makes them one by one. */
const MOST_STEPS = 10_000_000;

/** The task of each step; there is one step or more. @throws ScheduleError naming what cannot be read */
export function parseSchedule(program: Program, text: string): number[] {
  const keys = taskKeys(program);
  const plan: number[] = [];
  for (const part of text.split(/[\s,]+/).filter((each) => each !== '')) {
    const found = /^(\w+):(\d+)$/.exec(part);
    if (!found) throw new ScheduleError(`${part} is not of the form TASK:STEPS, such as vcpu0:12`);
    const task = keys.indexOf(found[1]!);
    if (task < 0) throw new ScheduleError(`there is no task ${found[1]}; there are ${keys.join(', ')}`);
    const steps = Number(found[2]);
    if (steps === 0) throw new ScheduleError(`${part} has no steps`);
    if (plan.length + steps > MOST_STEPS) throw new ScheduleError(`more than ${MOST_STEPS} steps`);
    for (let step = 0; step < steps; step++) plan.push(task);
  }
  if (plan.length === 0) throw new ScheduleError('it is empty; it names who makes how many steps, such as vcpu0:12');
  return plan;
}
