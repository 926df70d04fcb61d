import assert from 'node:assert/strict';
import { bothWays } from './both-ways.ts';
import { KERNELS, labTest, sharedLab } from './lab.ts';
import { randomProgram } from './programs.ts';

// What KVM has built, by the kernel's own memory and by its tracepoints: two ways that know nothing of each other.

const PROGRAMS = Number(process.env.KVM_MMU_AGREEMENT ?? 3);

for (const kernel of KERNELS)
  for (const npt of ['1', '0'])
    labTest(`${kernel}, npt=${npt}: events tell of the tables that the kernel has`, async () => {
      const lab = await sharedLab(kernel, { npt });
      let same = 0;
      for (let seed = 1; seed <= PROGRAMS; seed++) {
        const text = randomProgram(seed, { statements: 40, host: seed % 2 === 0, guest: true });
        const found = await bothWays(text, lab);
        same += found.same;
        assert.deepEqual(found.wrong, [], `seed ${seed}\n${text}`);
        // Of shadow tables it is said when something was silent.
        if (npt === '1') assert.equal(found.certainty, 'inferred', `seed ${seed}: ${found.why}`);
      }
      assert.ok(same > 5 * PROGRAMS, `only ${same} entries were alike`);
    });
