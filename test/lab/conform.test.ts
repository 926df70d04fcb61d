import assert from 'node:assert/strict';
import { PROGRAM } from '../../adapter/conform/layout.ts';
import { conformLegacy, type LegacyMismatch } from '../../adapter/conform/legacy.ts';
import { Lab } from '../../adapter/lab/boot.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import { native, SILENT } from '../kvm/kvm.ts';
import { KERNELS, labTest } from './lab.ts';

// 32-bit and PAE paging: the engine's walk beside upstream KVM's own, which shadow paging makes.

/** In what KVM differs, by its function; all else is a mistake. */
const ROWS: readonly (readonly [name: string, holds: (of: LegacyMismatch) => boolean])[] = [
  // EFER.NXE makes it tell of fetches without PAE too, where the manual wants both (SDM vol. 3, 4.7): it asks is_efer_nx alone.
  [
    'walk_addr_generic',
    ({ case: { mode, nxe, smep, kind }, engine, kvm }) =>
      mode === '32-bit' && nxe && !smep && kind === 'fetch' && kvm.error === engine.error + 0x10 && isElse(engine, kvm),
  ],
];

const isElse = (a: LegacyMismatch['engine'], b: LegacyMismatch['kvm']): boolean =>
  a.kind === b.kind && a.cr2 === b.cr2 && a.entries.every((entry, at) => entry === b.entries[at]);

const CASES = Number(process.env.KVM_MMU_LEGACY_CASES ?? 4000);

for (const kernel of KERNELS)
  labTest(
    `${kernel}, npt=0: accesses through random 32-bit and PAE tables end alike in the engine and on KVM`,
    async () => {
      const lab = await Lab.boot({ kernel, modules: [], params: { npt: '0' } }, SILENT);
      try {
        for (const mode of ['32-bit', 'pae'] as const) {
          const image = { path: native('conform32.bin'), at: `0x${PROGRAM.toString(16)}` };
          const client = new RspClient(await lab.start(['--memory', '64M'], image));
          await client.handshake();
          const { maxphyaddr, vendor } = await client.info();
          const host = { maxPhyAddr: maxphyaddr, amd: vendor === 'AuthenticAMD' };
          const { outcomes, mismatches } = await conformLegacy(client, host, mode, 1, CASES);
          client.kill();
          const wrong = mismatches.filter((each) => !ROWS.some(([, holds]) => holds(each)));
          const [first] = wrong;
          const shown = JSON.stringify(first, (_, value) =>
            typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
          );
          assert.equal(wrong.length, 0, `${mode}: ${wrong.length} of ${CASES} differ; the first: ${shown}`);
          assert.ok(outcomes.size > 10, 'every kind of fault is among them');
        }
      } finally {
        lab.close();
      }
    },
  );
