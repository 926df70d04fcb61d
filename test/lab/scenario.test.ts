import assert from 'node:assert/strict';
import { KERNELS, labTest, sharedLab } from './lab.ts';
import { FIRST_GPA, FIRST_GVA, PAGES, type ProgramShape, randomProgram } from './programs.ts';
import { emulate, onKvm, withEnd } from './run-both.ts';

// Scenarios of protected mode, which KVMs that are guests themselves do not run: they end as in the emulator.

const FIRST = Number(process.env.KVM_MMU_SEED ?? 1);
const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 4);

// With code of their own: a `ret` that is planted from outside has KVM make its shadow pages anew, and with EFER.NXE toggled that shows.
const SHAPES: readonly ProgramShape[] = [
  { statements: 60, host: false, guest: true, ownCode: true },
  { statements: 60, host: true, guest: true, ownCode: true, far: true },
];

/** Every entry and every word that a program could touch. */
const CELLS = [
  ...Array.from({ length: PAGES }, (_, page) => `pte(0x${(FIRST_GVA + page * 4096).toString(16)})`),
  ...Array.from({ length: 16 }, (_, page) => `u64(0x${(FIRST_GPA + page * 4096).toString(16)})`),
  'faults.guest',
  'accesses',
];

/**
 * Under NPT QEMU's processor sets A in the PDPTEs that it uses, where it is reserved: load_pdptrs fails from then on. A write to
 * CR4.SMEP, which loads them, would be a #GP; and KVM's emulator keeps to those that were there at the beginning (svm_cache_reg),
 * so that it finds a fetch below a later one not mapped. Programs leave SMEP alone and begin with the PDPTEs of all their pages.
 */
const withLoadablePdptes = (program: string): string =>
  program.replaceAll('cr4.smep', 'cr4.smap').replace('guest g pae {', '$&\n  map 0x80600000 -> 0x200000 +4K rwx');

for (const kernel of KERNELS)
  for (const npt of ['0', '1'])
    labTest(`${kernel}, npt=${npt}: programs of 32-bit and PAE guests end as in the emulator`, async () => {
      const lab = await sharedLab(kernel, { npt });
      for (let seed = FIRST; seed < FIRST + PROGRAMS / SHAPES.length / 2; seed++)
        for (const paging of ['32-bit', 'pae'] as const)
          for (const shape of SHAPES) {
            const second = npt === '1' ? 'tdp npt 5-level' : 'shadow';
            const program = randomProgram(seed, { ...shape, second, paging });
            const text = withEnd(npt === '1' && paging === 'pae' ? withLoadablePdptes(program) : program, CELLS);
            const failures = await onKvm(text, lab, async ({ run }) => {
              await run.finish();
              return run.machine.small.failures;
            });
            assert.deepEqual(failures, emulate(text).small.failures, `seed ${seed}, ${paging}\n${text}`);
          }
    });

/** Each vCPU in a paging mode of its own, through tables and addresses that one mode alone has. */
const MIXED = `machine x86-64 {
  memory 0 +64M
}
guest legacy 32-bit {
  map 0x400000 -> 0x800000 4M rwx
  map 0xc0000000 -> 0x100000 +16K rw- user
}
guest small pae {
  map 0x400000 -> 0x800000 2M r-x
  map 0xc0000000 -> 0x100000 +16K rw- user
}
guest wide {
  map 0xffff800000000000 -> 0x800000 2M rwx
}
vcpu 0 in legacy {
  write 0x5fff00 = 0x12345678
  user fetch 0xc0001000
  user read 0x400000
  expect faults.guest >= 1
  map 0x10000000 -> 0x101000 4K rwx
  write.2 0x10000000 = 3
  read 0x1_0000_0000
}
vcpu 1 in small {
  user fetch 0xc0001000
  read 0x5ffff8
  write 0x5ffff8 = 2
  map 0x40000000 -> 0x102000 4K rw-
  read 0x40000000
  cr3 = small
  write.1 0x40000000 = 5
  efer.nxe = 0
  read 0x40000000
}
vcpu 2 in wide {
  write 0xffff8000001fff08 = 0x1122334455667788
}
expect u32(0x9fff00) == 0x12345678
expect u64(0x9fff08) == 0x1122334455667788
expect u16(0x101000) == 3
expect u8(0x102000) == 5
`;

for (const kernel of KERNELS)
  labTest(`${kernel}: vCPUs of one machine run in paging modes of their own`, async () => {
    const lab = await sharedLab(kernel, { npt: '0' });
    const text = withEnd(MIXED.replace('64M', '64M\n  second-stage shadow'), ['faults.guest', 'accesses']);
    await onKvm(text, lab, async ({ run }) => {
      await run.finish();
      const { failures, warnings } = run.machine.small;
      assert.deepEqual(failures, []);
      assert.deepEqual(
        warnings.map((each) => each.text),
        ['vCPU 0: 0x100000000 is beyond 4G, which no address reaches outside of long mode'],
      );
    });
  });
