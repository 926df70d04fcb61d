import assert from 'node:assert/strict';
import { cliWithin, file } from '../cli/cli.ts';
import { labTest, NEWER_KERNELS } from './lab.ts';

// `kvm-mmu compare --target emulator --kernel …`: what is counted of the emulator are the events that upstream KVM records.

const TOGGLES = `machine x86-64 {
  memory 0 +16M
  second-stage shadow
}
guest a {
  map 0x400000 -> 0x200000 +64K rwx user
}
guest b {
  map 0x400000 -> 0x300000 +64K rwx user
}
vcpu 0 in a {
  write 0x400000
  cr3 = b
  write 0x400000
  cr0.wp = 0
  read 0x400000
  cr0.wp = 1
  cr3 = a
  read 0x401000
}
`;

for (const kernel of NEWER_KERNELS)
  labTest(
    `${kernel}: a scenario costs as many events as in the emulator, and leaves the same tables`,
    async () => {
      const path = file('toggles.mmu', TOGGLES);
      const wanted = ['--target', 'emulator', '--kernel', kernel, '--param', 'npt=0', '--json'];
      const { status, out, err } = cliWithin(120_000, 'compare', path, ...wanted);
      assert.equal(status, 0, err);
      const [emulator, lab] = JSON.parse(out) as {
        target: string;
        ok: boolean;
        counters: Record<string, number>;
        differences: unknown[][];
      }[];
      assert.equal(emulator!.target, 'emulator');
      assert.match(lab!.target, /^6\./);
      assert.deepEqual(lab!.counters, emulator!.counters);
      assert.ok(emulator!.counters['kvm_mmu_get_page, new']! > 10);
      assert.deepEqual(lab!.differences, [[]]);
    },
    kernel,
  );
