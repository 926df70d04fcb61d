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
        tables: (string | null)[];
      }[];
      assert.equal(emulator!.target, 'emulator');
      assert.match(lab!.target, /^6\./);
      const events = (counters: Record<string, number>): unknown =>
        Object.entries(counters).filter(([name]) => !name.startsWith('KVM: '));
      assert.deepEqual(events(lab!.counters), events(emulator!.counters));
      assert.ok(lab!.counters['KVM: exits']! > 0 && lab!.counters['KVM: tlb_flush']! > 0);
      assert.equal(emulator!.counters['modes.changed'], 2);
      assert.equal(emulator!.counters['roots built'], 3);
      assert.ok(emulator!.counters['kvm_mmu_get_page, new']! > 10);
      assert.deepEqual(lab!.differences, [[]]);
      assert.match(lab!.tables[0] ?? 'none', /^0x/);
      assert.deepEqual(lab!.tables, emulator!.tables, 'which guest page each leaf leads to counts, too');
    },
    kernel,
  );
