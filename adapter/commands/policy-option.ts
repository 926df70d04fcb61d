import { choosePolicy, DEFAULT_POLICIES } from '../../engine/policies.ts';
import type { Program } from '../../engine/program.ts';
import { UsageError } from './usage.ts';

export interface ChosenPolicy {
  readonly policy: string;
  readonly value: string;
}

/** The program with a policy chosen. @throws UsageError naming what there is */
export function withPolicy(program: Program, { policy, value }: ChosenPolicy): Program {
  const policies = choosePolicy(program.machine.policies ?? DEFAULT_POLICIES, policy, value);
  if ('error' in policies) throw new UsageError(policies.error);
  return { ...program, machine: { ...program.machine, policies } };
}

/** `--policy NAME=VALUE`, any number of times, each for another policy. @throws UsageError */
export function withPolicies(program: Program, written: readonly string[]): Program {
  let chosen = program;
  const named = new Set<string>();
  for (const each of written) {
    const found = /^([\w-]+)=([\w-]+)$/.exec(each);
    if (!found)
      throw new UsageError(
        `--policy takes NAME=VALUE here, such as --policy conversion=rfc-v8, not ${each || 'nothing'}`,
      );
    const [, policy, value] = found as unknown as [string, string, string];
    if (named.has(policy)) throw new UsageError(`--policy ${policy} is given twice`);
    named.add(policy);
    chosen = withPolicy(chosen, { policy, value });
  }
  return chosen;
}
