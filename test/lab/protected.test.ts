import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { DebugProtocol } from '@vscode/debugprotocol';
import { Client, spawnAdapter } from '../adapter/client.ts';
import { guest } from '../kvm/kvm.ts';
import { KERNELS, labTest, longLabTest } from './lab.ts';

// Guests in protected mode, with 32-bit and with PAE paging: 4-byte frames of exceptions, 32-bit code, EBP chains.

const [kernel] = KERNELS;
const SOURCE = resolve('examples/guests/protected.S');

/** The line of the source that has a text; 1-based. */
function lineOf(text: string): number {
  const index = readFileSync(SOURCE, 'utf8')
    .split('\n')
    .findIndex((line) => line.includes(text));
  assert.ok(index >= 0, `${SOURCE} has no ${text}`);
  return index + 1;
}

/** Names and lines of the stack, without offsets. */
async function stack(client: Client): Promise<string[]> {
  const { stackFrames } = (await client.request('stackTrace', { threadId: 1 })) as {
    stackFrames: DebugProtocol.StackFrame[];
  };
  return stackFrames.map(({ name, line }) => `${name.replace(/\+0x\w+/, '')}${line > 0 ? `:${line}` : ''}`);
}

/** As GNU as takes them, without their addresses. */
async function instructions(client: Client, memoryReference: string, instructionCount: number): Promise<string[]> {
  const body = (await client.request('disassemble', { memoryReference, instructionCount })) as {
    instructions: DebugProtocol.DisassembledInstruction[];
  };
  return body.instructions.map(({ instruction }) => instruction);
}

const MAIN = [`main:${lineOf('call	enter_user') - 2}`, `protected:${lineOf('call	main')}`];

for (const [elf, npt, top, testWhen] of [
  ['legacy.elf', 0, 'PDE', labTest],
  ['legacy.elf', 1, 'PDE', longLabTest],
  ['pae.elf', 0, 'PDPTE', longLabTest],
  ['pae.elf', 1, 'PDPTE', labTest],
] as const)
  testWhen(`${elf}, npt=${npt}: faults with their frames, lines and steps in 32-bit code`, async () => {
    const client = new Client(spawnAdapter());
    try {
      const launch = { guest: resolve(guest(elf)), memory: '16M', lab: { kernel, params: { npt } } };
      const first = await client.start(undefined, { launch, filters: ['guest'], patience: 90 });
      const handler = `page_fault:${lineOf('function page_fault') + 1}`;

      assert.match(first.body.text, /^vCPU 0 read gva 0x402000: PTE 2 is not present; .* error code 0x0, its handler/);
      const access = lineOf('movl	MISSING');
      assert.deepEqual(await stack(client), [handler, `read_missing:${access}`, ...MAIN]);
      const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
      const [, interrupted] = stackFrames as DebugProtocol.StackFrame[];
      assert.deepEqual(await instructions(client, interrupted!.instructionPointerReference!, 3), [
        'mov 0x402000,%eax',
        'pop %ebp',
        'ret',
      ]);
      const hover = await client.request('evaluate', { expression: 'gva:0x401abc', context: 'hover' });
      assert.match(hover.result, new RegExp(`^${top} \\d+ = \\S+ rwxu table`, 'm'));
      assert.match(hover.result, /^KVM \w+ 0 = \S+ rwxu table/m, 'KVM’s tables are walked beyond the top');

      // A line behind the fault, then a step over the call that faults again.
      await client.request('setExceptionBreakpoints', { filters: [] });
      const { breakpoints } = await client.request('setBreakpoints', {
        source: { path: SOURCE },
        breakpoints: [{ line: access + 1 }],
      });
      assert.equal(breakpoints[0].verified, true);
      assert.equal((await client.move('continue')).body.reason, 'breakpoint');
      assert.deepEqual(await stack(client), [`read_missing:${access + 1}`, ...MAIN]);
      await client.move('stepOut');
      assert.deepEqual(await stack(client), [`main:${lineOf('call	write_read_only')}`, MAIN[1]]);
      await client.move('next');
      assert.deepEqual(await stack(client), [`main:${lineOf('call	enter_user')}`, MAIN[1]]);
      await client.move('stepIn');
      const enter = lineOf('function enter_user');
      assert.equal((await stack(client))[0], `enter_user:${enter + 1}`);

      // By instructions, through IRET to the user, and into the handler for it.
      const path: string[] = [];
      for (let step = 0; step < 10; step++) {
        const stop = client.stop();
        await client.request('stepIn', { threadId: 1, granularity: 'instruction' });
        assert.equal((await stop).event, 'stopped');
        path.push((await stack(client))[0]!);
      }
      assert.deepEqual(path, [
        ...[2, 3, 4, 5, 6, 7, 8, 9].map((line) => `enter_user:${enter + line}`),
        '0x400000',
        handler,
      ]);
      await client.request('setExceptionBreakpoints', { filters: ['guest'] });
      await client.request('setBreakpoints', { source: { path: SOURCE }, breakpoints: [] });
      assert.equal((await client.move('continue')).event, 'terminated');
      const said = client.events.filter(({ event }) => event === 'output').map(({ body }) => body.output);
      assert.ok(
        said.some((line) => line.startsWith('the guest has ended with status 0')),
        said.join(''),
      );
    } finally {
      await client.close();
    }
  });
