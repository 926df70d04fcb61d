// biome-ignore-all lint/suspicious/noTemplateCurlyInString: this is how the protocol writes the places to fill in
import type { BLOCK_WORDS } from '../syntax-errors.ts';

/** Texts with places to fill in, by the block in which they make sense. */
export const SNIPPETS: Readonly<Partial<Record<keyof typeof BLOCK_WORDS, Readonly<Record<string, string>>>>> = {
  Scenario: {
    machine: 'machine x86-64 {\n  memory 0 +${1:64M}\n  second-stage tdp ${2|ept,npt|} 4-level\n}',
    guest: 'guest ${1:kernel} {\n  map ${2:0x400000} -> ${3:0x200000} ${4:2M} ${5:rwx}\n}',
    nested: 'nested ${1:stage} {\n  map ${2:0} -> ${3:0x1000000} +${4:4M}\n}',
    vcpu: 'vcpu ${1:0} in ${2:kernel} {\n  ${3:read 0x400000}\n}',
    host: 'host ${1:other} {\n  wait until ${2:accesses > 10}\n  ${3:zap all}\n}',
    expect: 'expect ${1:faults.guest} == ${2:0}',
  },
  Machine: { memory: 'memory ${1:0} +${2:64M}', 'second-stage': 'second-stage tdp ${1|ept,npt|} 4-level' },
  Guest: {
    map: 'map ${1:0x400000} -> ${2:0x200000} ${3:2M} ${4:rwx}',
    entry: 'entry ${1:0x400000} level ${2:1} = ${3:0x8000_0000_0000_0000}',
    tables: 'tables at ${1:0x100000}',
  },
  Vcpu: {
    repeat: 'repeat ${1:10} as ${2:i} {\n  ${3:write 0x400000 + i * 4K}\n}',
    wait: 'wait until ${1:accesses > 10}',
  },
  Host: {
    add: 'add slot ${1:3} at ${2:0x4000_0000} +${3:16M}',
    delete: 'delete slot ${1:0}',
    move: 'move slot ${1:0} to ${2:0x8000_0000}',
    log: 'log dirty slot ${1:0} ${2|on,off|}',
    invpcid: 'invpcid ${1:1}, ${2:0}',
    cpuid: 'cpuid maxphyaddr ${1:40}',
    inject: 'inject ${1:root-leak}',
    poke: 'poke ${1:0x1000} level ${2:1} = ${3:0}',
    repeat: 'repeat ${1:10} as ${2:i} {\n  ${3:zap all}\n}',
    wait: 'wait until ${1:accesses > 10}',
  },
};
