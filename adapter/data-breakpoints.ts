import type { DebugProtocol } from '@vscode/debugprotocol';
import { type Located, toHost } from './addresses.ts';
import type { Target } from './targets/target.ts';
import type { Node } from './variables.ts';

/**
 * Whether writes to what a variable or an expression stands for can be stopped at: 8 bytes of host memory.
 * @param nodes the variables among which `name` is one; undefined: it is an expression
 */
export function dataBreakpointInfo(
  { machine, capabilities, guest }: Target,
  name: string,
  nodes: (() => readonly Node[]) | undefined,
  locate: (text: string) => Located | undefined,
): DebugProtocol.DataBreakpointInfoResponse['body'] {
  const never = guest ? 'KVM does not tell of single writes: "trap GPA SIZE write" stops at the next' : undefined;
  if (!capabilities.run || never !== undefined) return { dataId: null, description: never ?? capabilities.why.run! };
  const text = nodes ? nodes().find((node) => node.name === name)?.memoryReference : name;
  const located = text === undefined ? undefined : locate(text);
  const host = located && toHost(machine, located);
  if (!host) return { dataId: null, description: `${name} has no place in memory` };
  return {
    dataId: `${host.pfn * 512 + (host.offset >> 3)}`,
    description: `8 bytes at ${text}`,
    accessTypes: ['write'],
  };
}
