// npm test: everything that a change must pass, in under fifteen minutes on two cores.
// npm run test:long: the same with fuzzing and oracles that run for longer, and with real guests booted under QEMU: over an hour. Programs in
// labs are the first thirty; KVM_MMU_SEED and KVM_MMU_AGREEMENT have a file of test/lab go on from there.
import { fileURLToPath } from 'node:url';
import { check, run } from './check.mjs';
import { buildNative } from './native.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
const long = process.argv.includes('--long');
const node = process.execPath;

if (!(await check())) process.exit(1);
const { buildAll } = await import('./build.mjs');
await buildAll();
try {
  buildNative();
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
const env = long ? { FUZZ_RUNS: '40000' } : {};
/** Those of a group run beside each other. */
const groups = [
  [
    [
      'sessions, oracles and fuzzing',
      ['scripts/test.mjs', 'test/adapter', 'test/engine', 'test/oracle', 'test/cli'],
      { env },
    ],
    // Kernels in QEMU, two at a time: each takes a processor, and waits for its other half as often as that for it.
    [
      'on upstream KVM in labs',
      ['scripts/test.mjs', 'test/lab', '--test-concurrency=2'],
      {
        loud: 'at-end',
        env: long
          ? {
              KVM_MMU_AGREEMENT: '30',
              KVM_MMU_LEGACY_CASES: '8000',
              KVM_MMU_LAB_KERNELS: 'linux-image-amd64,linux-image-6.12-amd64',
            }
          : {},
      },
    ],
  ],
  // One after the other: what they time, and what they ask of KVM, should not depend on each other.
  [
    [
      'on KVM',
      ['scripts/test.mjs', 'test/kvm', '--test-concurrency=1'],
      long ? { env: { KVM_MMU_FUZZ_SECONDS: '180', KVM_MMU_SCENARIOS: '150', KVM_MMU_CONFORM_CASES: '1000000' } } : {},
    ],
  ],
  ...(long ? [[['real guests under QEMU', ['scripts/test.mjs', 'test/guests'], {}]]] : []),
  [['inside VS Code', ['test/vscode/run.mjs'], long ? {} : { env: { KVM_MMU_ONE_THEME: '1' } }]],
];
let good = true;
for (const group of groups) {
  const ended = await Promise.all(
    group.map(([name, args, options]) => run(name, node, args, { loud: true, ...options })),
  );
  good &&= ended.every(Boolean);
}
process.exit(good ? 0 : 1);
