import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { RspClient } from '../../adapter/rsp/client.ts';
import { connectSocket } from '../../adapter/rsp/node-stream.ts';
import { guest, kvmTest, native } from './kvm.ts';
import { TestMachine } from './machine.ts';

/** Where the guest's user program begins, and memory of the kernel's that nothing uses. */
const USER_CODE = 0x80_0000_0000n;
const FREE = 0x40_0000n;

async function withMachine(args: readonly string[], work: (machine: TestMachine) => Promise<void>): Promise<void> {
  const machine = await TestMachine.start(args);
  try {
    await work(machine);
  } finally {
    machine.end();
  }
}

/** Goes on until the machine ends. @returns the reasons of the stops on the way */
async function runOut(machine: TestMachine, how: 'continue' | 'step' = 'continue'): Promise<string[]> {
  const reasons: string[] = [];
  for (;;) {
    await machine.client.resume('1', how);
    const event = await machine.next();
    if (event.kind === 'exited') return reasons;
    reasons.push(event.kvm!.reason);
  }
}

async function symbol(elf: string, name: string): Promise<bigint> {
  const line = execFileSync('nm', [elf], { encoding: 'utf8' })
    .split('\n')
    .find((each) => each.endsWith(` ${name}`));
  assert.ok(line, `${elf} has no ${name}`);
  return BigInt(`0x${line.split(' ')[0]}`);
}

/** What a guest prints when nobody debugs it. */
async function printed(args: readonly string[]): Promise<string> {
  let text = '';
  await withMachine(args, async (machine) => {
    assert.deepEqual(await runOut(machine), []);
    text = machine.console;
  });
  return text;
}

const FAULTS = ['--memory', '16M', '--slot', '1:0xf0000000:0x1000:ro', '--image', guest('faults.elf')];
const USER = ['--memory', '16M', '--image', guest('user.elf')];

kvmTest('a stop at #PF has the error code and CR2 that the guest’s handler then prints, at both privilege levels', () =>
  withMachine(FAULTS, async (machine) => {
    await machine.vendor('QKvm.Stop:guest-pf,mmio,read-only');
    const told: string[] = [];
    const others: string[] = [];
    const levels = new Set<number>();
    const handler = await symbol(guest('faults.elf'), 'page_fault');
    for (;;) {
      await machine.client.resume('1');
      const event = await machine.next();
      if (event.kind === 'exited') break;
      const stop = event.kvm!;
      const registers = await machine.registers();
      if (stop.reason !== 'guest-pf') {
        others.push(`${stop.reason} ${stop.access} ${stop.gpa!.toString(16)} ${stop.completed}`);
        continue;
      }
      assert.equal(registers.get('rip'), handler, 'the handler has not begun');
      assert.equal(registers.get('cr2'), stop.gva);
      told.push(`    #PF, error code 0x${stop.error!.toString(16)}, cr2 0x${stop.gva!.toString(16)}`);
      levels.add(stop.cpl!);
    }
    const printedFaults = machine.console.split('\n').filter((line) => line.startsWith('    #PF'));
    assert.equal(printedFaults.length, 17);
    assert.deepEqual(told, printedFaults);
    assert.deepEqual([...levels].sort(), [0, 3]);
    assert.deepEqual(others, ['mmio read e0000000 false', 'mmio write e0000000 true', 'read-only write f0000000 true']);
  }),
);

kvmTest('a guest that is stepped from its first instruction to its last prints what it prints alone', async () => {
  const alone = await printed(USER);
  await withMachine(USER, async (machine) => {
    let user = 0;
    let steps = 0;
    for (;;) {
      await machine.client.resume('1', 'step');
      const event = await machine.next();
      if (event.kind === 'exited') break;
      assert.equal(event.kvm!.reason, 'step');
      steps++;
      if (event.kvm!.rip! >= USER_CODE) user++;
    }
    assert.equal(machine.console, alone);
    assert.ok(user > 1000 && steps > user + 10_000, `${user} of ${steps} steps were the user’s`);
  });
});

/** `xor eax, eax; mov ecx, 500; 1: inc rax; dec ecx; jnz 1b`, then `end`. */
const counting = (...end: number[]): Uint8Array =>
  Uint8Array.of(0x31, 0xc0, 0xb9, 0xf4, 0x01, 0, 0, 0x48, 0xff, 0xc0, 0xff, 0xc9, 0x75, 0xf9, ...end);
const COUNTED = 2 + 3 * 500;

kvmTest('steps at CPL0 are instructions, one by one', () =>
  withMachine(USER, async (machine) => {
    await machine.client.writePhysical(FREE, counting(0x90));
    await machine.client.writeRegisters('1', { rip: FREE });
    for (let step = 0; step < COUNTED; step++) assert.equal((await machine.go('step')).reason, 'step');
    const registers = await machine.registers();
    assert.equal(registers.get('rax'), 500n);
    assert.equal(registers.get('rip'), FREE + 14n);
  }),
);

kvmTest('steps at CPL3 are instructions, one by one, and leave no trap flag behind', () =>
  withMachine(USER, async (machine) => {
    const program = await symbol(guest('user.elf'), 'program');
    await machine.client.insertBreakpoint('hardware', await symbol(guest('user.elf'), 'enter_user'));
    await machine.go();
    while ((await machine.registers()).get('rip') !== program) await machine.go('step');
    // pushf; pop rdx, on a stack that is there.
    await machine.client.writeVirtual('1', program, counting(0x9c, 0x5a, 0x90));
    await machine.client.writeRegisters('1', { rsp: USER_CODE + 0xff0n });
    for (let step = 0; step < COUNTED + 2; step++) assert.equal((await machine.go('step')).reason, 'step');
    const registers = await machine.registers();
    assert.equal(registers.get('rax'), 500n);
    assert.equal(registers.get('rip'), program + 16n);
    assert.equal(registers.get('cs')! & 3n, 3n);
    assert.equal(registers.get('eflags')! & 0x100n, 0n, 'the trap flag is off');
  }),
);

kvmTest('software and hardware breakpoints stop before the instruction, at both levels, as often as it runs', () =>
  withMachine(USER, async (machine) => {
    const elf = guest('user.elf');
    const [say, entryOf] = [await symbol(elf, 'say'), await symbol(elf, 'entry_of')];
    await machine.client.insertBreakpoint('software', say);
    await machine.client.insertBreakpoint('hardware', entryOf);
    const hits = new Map<bigint, number>();
    for (;;) {
      await machine.client.resume('1');
      const event = await machine.next();
      if (event.kind === 'exited') break;
      assert.equal(event.kvm!.reason, 'breakpoint');
      const rip = (await machine.registers()).get('rip')!;
      hits.set(rip, (hits.get(rip) ?? 0) + 1);
      // Memory is shown without the int3.
      if (rip === say) assert.notEqual((await machine.client.readVirtual('1', say, 1))[0], 0xcc);
    }
    assert.equal(hits.get(say), 8, 'the program says eight things');
    // One page given to the user; faults: the stack, eight reads, four writes, page 0 again; three system calls.
    assert.equal(hits.get(entryOf), 1 + 14 + 3);
    assert.equal(machine.console, await printed(USER));
  }),
);

kvmTest(
  'second-stage faults: the first touch and the first write of armed pages stop, and the guest computes the same',
  () =>
    withMachine(USER, async (machine) => {
      const alone = await printed(USER);
      const has = (await machine.client.info()).has;
      await machine.vendor('QKvm.Stop:second-stage');
      // Pages that the kernel hands out: those behind the image. Untouched, written by the loader, and written later.
      for (const gpa of ['10e000', '10f000', '110000', '111000', '112000'])
        await machine.vendor(`vKvm.Trap:${gpa},1000,touch`);
      if (has['userfaultfd-wp'] === '') await machine.vendor('vKvm.Trap:100000,1000,write');
      await machine.vendor('vKvm.Trap:109000,1000,touch');
      const seen = new Set<string>();
      for (;;) {
        await machine.client.resume('1');
        const event = await machine.next();
        if (event.kind === 'exited') break;
        const stop = event.kvm!;
        assert.equal(stop.reason, 'second-stage');
        const key = `${(stop.gpa! >> 12n).toString(16)} ${stop.trap === 'write-protected' ? 'write' : 'touch'}`;
        assert.ok(!seen.has(key), `${key} is armed once`);
        seen.add(key);
        assert.equal(stop.exact.includes('gpa'), true);
      }
      assert.ok(seen.size >= 4, [...seen].join(', '));
      assert.equal(machine.console, alone);
    }),
);

kvmTest('a held second-stage fault of user code stops at the instruction, which runs once when the vCPU goes on', () =>
  withMachine(USER, async (machine) => {
    const program = await symbol(guest('user.elf'), 'program');
    await machine.client.insertBreakpoint('hardware', await symbol(guest('user.elf'), 'enter_user'));
    await machine.go();
    while ((await machine.registers()).get('rip') !== program) await machine.go('step');
    // incq (rdi); ud2
    await machine.client.writeVirtual('1', program, Uint8Array.of(0x48, 0xff, 0x07, 0x0f, 0x0b));
    // The user's stack page comes with its first use: take the code's own page for data.
    const cell = USER_CODE + 0xf00n;
    await machine.client.writeRegisters('1', { rdi: cell, rsp: USER_CODE + 0xe00n });
    const before = new DataView((await machine.client.readVirtual('1', cell, 8)).buffer).getBigUint64(0, true);
    await machine.vendor('QKvm.Stop:second-stage');
    const gpa = await symbol(guest('user.elf'), 'kernel_end');
    await machine.vendor(`vKvm.Trap:${gpa.toString(16)},1000,write`);
    const stop = await machine.go();
    assert.equal(stop.reason, 'second-stage', JSON.stringify(stop.reason));
    assert.equal(stop.access, 'write');
    assert.equal(stop.gpa! & ~0xfffn, gpa);
    const handler = await symbol(guest('user.elf'), 'kernel_exception');
    await machine.client.insertBreakpoint('hardware', handler);
    assert.equal((await machine.go()).reason, 'breakpoint');
    const after = new DataView((await machine.client.readVirtual('1', cell, 8)).buffer).getBigUint64(0, true);
    assert.equal(after, before + 1n, 'incremented once');
    if (!stop.completed) assert.equal(stop.rip, program);
  }),
);

kvmTest('a running vCPU is paused, and goes on where it was', () =>
  withMachine(['--memory', '16M', '--vcpus', '2', '--image', guest('user.elf')], async (machine) => {
    // Both count: lock; incq [rdi]; jmp.
    await machine.client.writePhysical(FREE, Uint8Array.of(0xf0, 0x48, 0xff, 0x07, 0xeb, 0xfa));
    for (const [thread, cell] of [
      ['1', FREE + 0x1000n],
      ['2', FREE + 0x1008n],
    ] as const)
      await machine.client.writeRegisters(thread, { rip: FREE, rdi: cell });
    await machine.client.resume('all');
    await new Promise((resolve) => setTimeout(resolve, 50));
    await assert.rejects(machine.registers('1'), /running/);
    await machine.client.stop('2');
    assert.equal((await machine.stopped()).reason, 'pause');
    const counts = async (): Promise<bigint[]> => {
      const view = new DataView((await machine.client.readPhysical(FREE + 0x1000n, 16)).buffer);
      return [view.getBigUint64(0, true), view.getBigUint64(8, true)];
    };
    const [first, second] = await counts();
    await new Promise((resolve) => setTimeout(resolve, 50));
    const [later, same] = await counts();
    assert.ok(first! > 1000n && second! > 1000n, 'both ran');
    assert.ok(later! > first!, 'vCPU 0 runs on');
    assert.equal(same, second, 'vCPU 1 stands still');
    await machine.client.stop('1');
    await machine.stopped();
    // A breakpoint in code that both run: each stops at it.
    await machine.client.insertBreakpoint('software', FREE + 4n);
    await machine.client.resume('all');
    assert.equal((await machine.stopped()).reason, 'breakpoint');
    assert.equal((await machine.stopped()).reason, 'breakpoint');
  }),
);

/** `1: inc rax; inc rbx; jmp 1b`: what the registers must be at each of its instructions. */
const PAIR = Uint8Array.of(0x48, 0xff, 0xc0, 0x48, 0xff, 0xc3, 0xeb, 0xf8);

for (const level of ['CPL0', 'CPL3'] as const)
  kvmTest(`pauses, steps and resumes in any order lose no instruction and run none twice, at ${level}`, () =>
    withMachine(USER, async (machine) => {
      let start = FREE;
      if (level === 'CPL0') {
        await machine.client.writePhysical(FREE, PAIR);
        await machine.client.writeRegisters('1', { rip: FREE, rax: 0n, rbx: 0n });
      } else {
        start = await symbol(guest('user.elf'), 'program');
        await machine.client.insertBreakpoint('hardware', await symbol(guest('user.elf'), 'enter_user'));
        await machine.go();
        while ((await machine.registers()).get('rip') !== start) await machine.go('step');
        await machine.client.writeVirtual('1', start, PAIR);
        await machine.client.writeRegisters('1', { rax: 0n, rbx: 0n });
      }
      let before = 0n;
      for (let round = 0; round < 150; round++) {
        if (round % 3 === 2) {
          const registers = await machine.registers();
          const reason = (await machine.go('step')).reason;
          assert.equal(reason, 'step');
          const now = await machine.registers();
          const at = Number(registers.get('rip')! - start);
          // Each instruction does its own.
          assert.equal(now.get('rax')! - registers.get('rax')!, at === 0 ? 1n : 0n);
          assert.equal(now.get('rbx')! - registers.get('rbx')!, at === 3 ? 1n : 0n);
          assert.equal(Number(now.get('rip')! - start), at === 0 ? 3 : at === 3 ? 6 : 0);
        } else {
          await machine.client.resume('1');
          await new Promise((resolve) => setTimeout(resolve, round % 5));
          await machine.client.stop('1');
          assert.equal((await machine.stopped()).reason, 'pause');
        }
        const registers = await machine.registers();
        const [rax, rbx] = [registers.get('rax')!, registers.get('rbx')!];
        const at = Number(registers.get('rip')! - start);
        assert.ok([0, 3, 6].includes(at), `rip is ${at} bytes into the loop`);
        assert.equal(rax - rbx, at === 3 ? 1n : 0n, `round ${round}, at ${at}`);
        assert.ok(rax >= before, 'time goes on');
        before = rax;
      }
      assert.ok(before > 1000n, `${before} rounds`);
    }),
  );

kvmTest('slots come, go, move and turn read-only while vCPUs run', () =>
  withMachine(['--memory', '16M', '--image', guest('user.elf')], async (machine) => {
    await machine.client.writePhysical(FREE, Uint8Array.of(0x48, 0xff, 0x07, 0xeb, 0xfb));
    await machine.client.writeRegisters('1', { rip: FREE, rdi: 0x8000_0000n });
    await machine.vendor('vKvm.Slot:add,5,80000000,10000');
    await machine.client.resume('1');
    await machine.vendor('vKvm.Slot:move,5,90000000');
    await machine.vendor('vKvm.Slot:move,5,80000000');
    await machine.vendor('vKvm.Slot:flags,5,log');
    const dirty = async (): Promise<string> => machine.vendor('qKvm.Dirty:5');
    await dirty();
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(JSON.parse(await dirty()), [0x80000]);
    await machine.vendor('QKvm.Stop:read-only,mmio');
    await machine.vendor('vKvm.Slot:flags,5,ro');
    const stop = await machine.stopped();
    assert.equal(stop.reason, 'read-only');
    assert.equal(stop.gpa, 0x8000_0000n);
    await machine.vendor('vKvm.Slot:delete,5');
    assert.equal((await machine.go()).reason, 'mmio');
    await assert.rejects(machine.vendor('vKvm.Slot:delete,5'), /there is no slot 5/);
    await assert.rejects(machine.vendor('vKvm.Slot:add,6,800,1000'), /multiples of 4K/);
    await assert.rejects(machine.vendor('vKvm.Slot:add,6,1000,1000'), /overlaps slot 0/);
  }),
);

kvmTest('what the host has is used, and what it lacks is named', () =>
  withMachine(['--memory', '16M', '--image', guest('user.elf')], async (machine) => {
    const { has } = await machine.client.info();
    const stats = JSON.parse(await machine.vendor('qKvm.Stats'));
    if (has.statistics === '') assert.ok(stats.vcpus[0].exits >= 0, JSON.stringify(stats).slice(0, 200));
    for (const [capability, packet] of [
      ['memory-attributes', 'vKvm.Attributes:0,1000,private'],
      ['pre-fault', 'vKvm.PreFault:0,0,1000'],
      ['guest-memfd', 'vKvm.Slot:add,9,80000000,200000,private'],
    ] as const) {
      if (has[capability] === '') assert.equal(await machine.vendor(packet), 'OK');
      else await assert.rejects(machine.vendor(packet), (error: Error) => error.message.includes(has[capability]!));
    }
  }),
);

kvmTest('the dirty log with its manual clear keeps pages dirty until they are cleared', () =>
  withMachine(['--memory', '16M', '--image', guest('user.elf')], async (machine) => {
    const { has } = await machine.client.info();
    if (has['dirty-manual'] !== '') return assert.rejects(machine.vendor('vKvm.DirtyManual:1'), /DIRTY_LOG_PROTECT2/);
    await machine.vendor('vKvm.DirtyManual:1');
    await machine.vendor('vKvm.Slot:flags,0,log');
    // mov [rdi], al; hlt; jmp back
    await machine.client.writePhysical(FREE, Uint8Array.of(0x88, 0x07, 0xf4, 0xeb, 0xfb));
    const cell = FREE + 0x5000n;
    const page = Number(cell >> 12n);
    await machine.client.writeRegisters('1', { rip: FREE, rdi: cell });
    const dirty = async (): Promise<number[]> => JSON.parse(await machine.vendor('qKvm.Dirty:0'));
    assert.equal((await machine.go()).reason, 'halt');
    assert.ok((await dirty()).includes(page), 'written');
    assert.ok((await dirty()).includes(page), 'taken, and dirty still');
    await machine.vendor(`vKvm.DirtyClear:0,${(page - (page % 64)).toString(16)},40`);
    assert.ok(!(await dirty()).includes(page), 'cleared');
    assert.equal((await machine.go()).reason, 'halt');
    assert.ok((await dirty()).includes(page), 'written again');
    await assert.rejects(machine.vendor('vKvm.DirtyClear:0,1,40'), /multiples of 64/);
  }),
);

kvmTest('the dirty ring names the pages that were written', async () => {
  await withMachine(['--memory', '16M', '--dirty-ring', '32768', '--image', guest('user.elf')], async (machine) => {
    await machine.vendor('vKvm.Slot:flags,0,log');
    await runOut(machine);
    const entries: [number, string][] = JSON.parse(await machine.vendor('qKvm.DirtyRing:0'));
    assert.ok(entries.length > 3, `${entries.length} entries`);
    assert.ok(entries.every(([slot]) => slot === 0));
  });
});

kvmTest('a triple fault, an instruction that KVM does not know, and a halt are stops that say what they are', () =>
  withMachine(['--memory', '16M', '--image', guest('user.elf')], async (machine) => {
    // hlt
    await machine.client.writePhysical(FREE, Uint8Array.of(0xf4, 0x90));
    await machine.client.writeRegisters('1', { rip: FREE });
    assert.equal((await machine.go()).reason, 'halt');
    // A read of an address that nothing maps, without an IDT.
    await machine.client.writePhysical(FREE, Uint8Array.of(0x8a, 0x07));
    await machine.client.writeRegisters('1', { rip: FREE, rdi: 0x7000_0000_0000n });
    const shutdown = await machine.go();
    assert.equal(shutdown.reason, 'shutdown');
    assert.equal(shutdown.gva, 0x7000_0000_0000n);
  }),
);

kvmTest('a step that faults ends where the guest’s #PF handler begins, as #PF if that is wanted', () =>
  withMachine(USER, async (machine) => {
    const handler = await symbol(guest('user.elf'), 'page_fault');
    await machine.vendor('QKvm.Stop:guest-pf');
    const fault = await machine.go();
    assert.equal(fault.reason, 'guest-pf');
    for (const [wanted, reason] of [
      ['guest-pf', 'guest-pf'],
      ['', 'step'],
    ] as const) {
      // A read of what nothing maps, at CPL0.
      await machine.vendor(`QKvm.Stop:${wanted}`);
      await machine.client.writePhysical(FREE, Uint8Array.of(0x8a, 0x07));
      await machine.client.writeRegisters('1', { rip: FREE, rdi: 0x7000_0000_0000n });
      const stop = await machine.go('step');
      assert.equal(stop.reason, reason);
      assert.equal((await machine.registers()).get('rip'), handler);
    }
  }),
);

kvmTest('steps over output and over writes to devices are one instruction', () =>
  withMachine(USER, async (machine) => {
    // out %al, $0x80; mov %al, (%rdi); nop; nop
    await machine.client.writePhysical(FREE, Uint8Array.of(0xe6, 0x80, 0x88, 0x07, 0x90, 0x90));
    await machine.client.writeRegisters('1', { rip: FREE, rdi: 0xe000_0000n });
    for (const rip of [2n, 4n, 5n, 6n]) {
      assert.equal((await machine.go('step')).reason, 'step');
      assert.equal((await machine.registers()).get('rip'), FREE + rip);
    }
  }),
);

kvmTest('an instruction that faults twice on one page, or on two, is told, goes on, and can be paused', () =>
  withMachine(USER, async (machine) => {
    const { has } = await machine.client.info();
    if (has['userfaultfd-wp'] !== '')
      return assert.rejects(machine.vendor('vKvm.Trap:500000,1000,write'), /userfaultfd/);
    const [first, second] = [0x50_0000n, 0x50_1000n];
    // 1: incq (%rdi); movsq; jmp 1b
    await machine.client.writePhysical(FREE, Uint8Array.of(0x48, 0xff, 0x07, 0x48, 0xa5, 0xeb, 0xf9));
    for (const page of [first, second]) await machine.client.writePhysical(page, Uint8Array.of(1));
    await machine.client.writeRegisters('1', { rip: FREE, rdi: first, rsi: second });
    await machine.vendor('QKvm.Stop:second-stage');
    for (const how of ['touch', 'write']) await machine.vendor(`vKvm.Trap:${first.toString(16)},2000,${how}`);
    const seen = new Set<string>();
    for (let stops = 0; stops < 8; stops++) {
      await machine.client.resume('1');
      const timer = setTimeout(() => void machine.client.stop('1'), 300);
      const stop = await machine.stopped();
      clearTimeout(timer);
      if (stop.reason === 'pause') break;
      assert.equal(stop.reason, 'second-stage');
      seen.add(`${stop.gpa! >> 12n}`);
    }
    assert.deepEqual([...seen].sort(), [`${first >> 12n}`, `${second >> 12n}`]);
    await machine.client.resume('1');
    await machine.client.stop('1');
    assert.equal((await machine.stopped()).reason, 'pause');
  }),
);

kvmTest('a stop at a second-stage fault within a step is followed by neither a false breakpoint nor a false step', () =>
  withMachine(USER, async (machine) => {
    const page = 0x50_0000n;
    // mov (%rdi), %al; inc %rbx; inc %rbx; hlt
    await machine.client.writePhysical(FREE, Uint8Array.of(0x8a, 0x07, 0x48, 0xff, 0xc3, 0x48, 0xff, 0xc3, 0xf4));
    for (const [how, reason, rip] of [
      ['continue', 'halt', 9n],
      ['step', 'step', 5n],
    ] as const) {
      await machine.client.writeRegisters('1', { rip: FREE, rdi: page, rbx: 0n });
      await machine.vendor('QKvm.Stop:second-stage');
      await machine.vendor(`vKvm.Trap:${page.toString(16)},1000,touch`);
      assert.equal((await machine.go('step')).reason, 'second-stage');
      const next = await machine.go(how);
      assert.equal(next.reason, reason);
      const registers = await machine.registers();
      assert.ok(
        registers.get('rip') === FREE + rip || registers.get('rip') === FREE + rip - 1n,
        `${how}: ${registers.get('rip')}`,
      );
    }
  }),
);

kvmTest('the dirty log outlives what a breakpoint makes KVM forget', () =>
  withMachine(USER, async (machine) => {
    await machine.vendor('vKvm.Slot:flags,0,log');
    // mov %al, (%rdi); nop; nop; hlt
    await machine.client.writePhysical(FREE, Uint8Array.of(0x88, 0x07, 0x90, 0x90, 0xf4));
    await machine.client.writeRegisters('1', { rip: FREE, rdi: 0x50_0000n });
    await machine.vendor('qKvm.Dirty:0');
    await machine.client.insertBreakpoint('software', FREE + 3n);
    assert.equal((await machine.go()).reason, 'breakpoint');
    await machine.client.removeBreakpoint('software', FREE + 3n);
    assert.equal((await machine.go()).reason, 'halt');
    assert.ok(JSON.parse(await machine.vendor('qKvm.Dirty:0')).includes(0x500), 'the page written before');
  }),
);

kvmTest('an int3 stops the code in every address space that maps it', () =>
  withMachine(FAULTS, async (machine) => {
    // The user's page is mapped at its physical address too.
    const physical = await symbol(guest('faults.elf'), 'kernel_end');
    await machine.client.insertBreakpoint('software', physical);
    const stop = await machine.go();
    assert.equal(stop.reason, 'breakpoint');
    assert.equal((await machine.registers()).get('rip'), USER_CODE);
    // And it is passed.
    await machine.client.removeBreakpoint('software', physical);
    assert.deepEqual(await runOut(machine), []);
  }),
);

kvmTest(
  'whoever changes the machine while a vCPU steps over a breakpoint into a held page does not wait for ever',
  () =>
    withMachine(USER, async (machine) => {
      const page = 0x50_0000n;
      // 1: mov (%rdi), %al; jmp 1b
      await machine.client.writePhysical(FREE, Uint8Array.of(0x8a, 0x07, 0xeb, 0xfc));
      await machine.client.writeRegisters('1', { rip: FREE, rdi: page });
      await machine.client.insertBreakpoint('software', FREE);
      await machine.vendor('QKvm.Stop:second-stage');
      for (let round = 0; round < 20; round++) {
        await machine.vendor(`vKvm.Trap:${page.toString(16)},1000,touch`);
        const resumed = machine.client.resume('1');
        const told = machine.vendor('qKvm.Stats');
        await resumed;
        await told;
        await machine.stopped();
      }
    }),
);

kvmTest('a machine that is left runs on: no trap, no breakpoint and no stop of the client’s holds it', async () => {
  const socket = join(mkdtempSync(join(tmpdir(), 'kvm-mmu-')), 'helper.sock');
  const helper = spawn(native('kvm-mmu-helper'), [...USER, '--listen', socket], { stdio: 'ignore' });
  try {
    while (!existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 10));
    const cell = 0x50_0000n;
    const count = async (client: RspClient): Promise<bigint> =>
      new DataView((await client.readPhysical(cell, 8)).buffer).getBigUint64(0, true);
    const first = new RspClient(connectSocket(socket));
    await first.handshake();
    // 1: incq (%rdi); mov (%rsi), %al; jmp 1b
    await first.writePhysical(FREE, Uint8Array.of(0x48, 0xff, 0x07, 0x8a, 0x06, 0xeb, 0xf9));
    await first.writeRegisters('1', { rip: FREE, rdi: cell, rsi: cell + 0x1000n });
    await first.vendor('QKvm.Stop:guest-pf,second-stage');
    await first.vendor(`QKvm.Handler:${FREE.toString(16)}`);
    await first.insertBreakpoint('software', FREE + 5n);
    await first.vendor(`vKvm.Trap:${(cell + 0x1000n).toString(16)},1000,touch`);
    await first.detach();
    await new Promise((resolve) => setTimeout(resolve, 200));
    const second = new RspClient(connectSocket(socket));
    assert.deepEqual(await second.handshake(), [], 'it runs');
    const before = await count(second);
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.ok(before > 1000n && (await count(second)) > before);
    second.kill();
  } finally {
    helper.kill();
  }
});

kvmTest('code that is written over a breakpoint is what runs, after the stop', () =>
  withMachine(USER, async (machine) => {
    // nop; hlt
    await machine.client.writePhysical(FREE, Uint8Array.of(0x90, 0xf4));
    await machine.client.writeRegisters('1', { rip: FREE, rbx: 0n });
    await machine.client.insertBreakpoint('software', FREE + 1n);
    // inc %rbx; hlt, over both.
    await machine.client.writePhysical(FREE + 1n, Uint8Array.of(0x48, 0xff, 0xc3, 0xf4));
    assert.equal((await machine.go()).reason, 'breakpoint');
    assert.deepEqual([...(await machine.client.readPhysical(FREE + 1n, 3))], [0x48, 0xff, 0xc3]);
    assert.equal((await machine.go()).reason, 'halt');
    assert.equal((await machine.registers()).get('rbx'), 1n);
  }),
);

kvmTest('a page size that the host is not asked for is refused by its name', async () => {
  const { status, stderr } = spawnSync(native('kvm-mmu-helper'), ['--page-size', '3M'], { encoding: 'utf8' });
  assert.equal(status, 2);
  assert.match(stderr, /--page-size 3M: 4K or 2M is wanted/);
});

kvmTest('a VM with private memory is made, or it is said what this KVM lacks for one', () =>
  withMachine([], async ({ client }) => {
    const { status, stderr } = spawnSync(
      native('kvm-mmu-helper'),
      ['--vm-type', 'software-protected', '--slot', '0:0:1M:private'],
      { encoding: 'utf8', input: '' },
    );
    // The system answers for VMs of every type, this machine for its own.
    if (status !== 0)
      assert.match(stderr, /KVM makes no software-protected VM: this kernel .*CONFIG_KVM_SW_PROTECTED_VM/);
    await assert.rejects(
      client.vendor('vKvm.Attributes:0,1000,private'),
      /this kernel has no KVM_CAP_MEMORY_ATTRIBUTES for such a VM \(Linux 6\.8, and a VM type with private memory\)/,
    );
    await assert.rejects(client.vendor('vKvm.Attributes:0,1000,secret'), /“secret”: memory is private or shared/);
    await assert.rejects(
      client.vendor('vKvm.Punch:0,1000'),
      /slot 0 has no guest_memfd, in which a hole could be punched/,
    );
  }),
);

kvmTest('a type of VM and a kind of slot that there are not are refused by their names', async () => {
  const refusal = (...options: readonly string[]): string =>
    spawnSync(native('kvm-mmu-helper'), options, { encoding: 'utf8' }).stderr;
  assert.match(refusal('--vm-type', 'snp'), /--vm-type snp: ordinary or software-protected is wanted/);
  assert.match(refusal('--slot', '0:0:1M:secret'), /--slot 0:0:1M:secret: .* or :private for a guest_memfd/);
});
