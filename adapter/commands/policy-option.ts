import { choosePolicy, DEFAULT_POLICIES, POLICY_VALUES } from '../../engine/policies.ts';
import type { Program } from '../../engine/program.ts';
import { UsageError } from './usage.ts';

export interface ChosenPolicy {
  readonly policy: string;
  readonly value: string;
}

/** The program with a policy chosen. @throws UsageError naming what there is */
export function withPolicy(program: Program, { policy, value }: ChosenPolicy): Program {
  const policies = choosePolicy(program.machine.policies ?? DEFAULT_POLICIES, policy, value, program.machine.vm);
  if ('error' in policies) throw new UsageError(policies.error);
  return { ...program, machine: { ...program.machine, policies } };
}

/** `--policy` as it was written: policies that are chosen for all runs, and the one whose values are compared, if any. */
export interface WrittenPolicies {
  readonly fixed: readonly ChosenPolicy[];
  readonly compared: { readonly policy: string; readonly values: readonly string[] } | undefined;
}

/**
 * `--policy NAME=VALUE`, any number of times, each for another policy; of one of them NAME=VALUE,VALUE… or NAME=all.
 * @param form what is said to take, where one is not of the form
 * @throws UsageError
 */
export function readPolicies(written: readonly string[], form: string): WrittenPolicies {
  const fixed: ChosenPolicy[] = [];
  let compared: WrittenPolicies['compared'];
  const named = new Set<string>();
  for (const each of written) {
    const found = /^([\w-]+)=([\w-]+(?:,[\w-]+)*)$/.exec(each);
    if (!found) throw new UsageError(`--policy takes ${form}, not ${each || 'nothing'}`);
    const [, policy, list] = found as unknown as [string, string, string];
    if (named.has(policy)) throw new UsageError(`--policy ${policy} is given twice`);
    named.add(policy);
    const all: Readonly<Record<string, readonly string[]>> = POLICY_VALUES;
    // An unknown policy has no values: it is refused by its name.
    const values = list === 'all' ? (all[policy] ?? ['']) : list.split(',');
    if (new Set(values).size < values.length) throw new UsageError(`--policy ${policy}: a value is given twice`);
    if (values.length === 1) fixed.push({ policy, value: values[0]! });
    else if (compared)
      throw new UsageError(`--policy: values of ${compared.policy} and of ${policy} cannot be compared at once`);
    else compared = { policy, values };
  }
  return { fixed, compared };
}

/** The program with these policies. @throws UsageError naming what there is */
export function withPolicies(program: Program, chosen: readonly ChosenPolicy[]): Program {
  return chosen.reduce(withPolicy, program);
}
