import assert from 'node:assert/strict';
import { PROGRAM } from '../../adapter/conform/layout.ts';
import { conformLegacy } from '../../adapter/conform/legacy.ts';
import { legacyRow } from '../../adapter/conform/legacy-rows.ts';
import { RspClient } from '../../adapter/rsp/client.ts';
import { cliWithin } from '../cli/cli.ts';
import { native } from '../kvm/kvm.ts';
import { KERNELS, labTest, sharedLab } from './lab.ts';

// 32-bit and PAE paging: the engine's walk beside upstream KVM's own, which shadow paging makes.

const CASES = Number(process.env.KVM_MMU_LEGACY_CASES ?? 2000);

for (const kernel of KERNELS)
  labTest(
    `${kernel}, npt=0: accesses through random 32-bit and PAE tables end alike in the engine and on KVM`,
    async () => {
      const lab = await sharedLab(kernel, { npt: '0' });
      for (const mode of ['32-bit', 'pae'] as const) {
        const image = { path: native('conform32.bin'), at: `0x${PROGRAM.toString(16)}` };
        const client = new RspClient(await lab.start(['--memory', '64M'], image));
        await client.handshake();
        const { maxphyaddr, vendor } = await client.info();
        const host = { maxPhyAddr: maxphyaddr, amd: vendor === 'AuthenticAMD' };
        const { outcomes, mismatches } = await conformLegacy(client, host, mode, 1, { first: 0, count: CASES });
        client.kill();
        const wrong = mismatches.filter((each) => !legacyRow(each));
        const [first] = wrong;
        const shown = JSON.stringify(first, (_, value) =>
          typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
        );
        assert.equal(wrong.length, 0, `${mode}: ${wrong.length} of ${CASES} differ; the first: ${shown}`);
        assert.ok(outcomes.size > 10, 'every kind of fault is among them');
      }
    },
  );

labTest('kvm-mmu lab conform takes the kind of paging, and tells what is known of KVM apart', async () => {
  const ran = cliWithin(
    60_000,
    ...['lab', 'conform', '--kernel', KERNELS[0]!, '--paging', '32-bit'],
    ...['--seed', '3', '--cases', '1000', '--json'],
  );
  assert.equal(ran.status, 0, ran.err);
  const { ok, mode, cases, outcomes, known, mismatches } = JSON.parse(ran.out);
  assert.deepEqual({ ok, mode, cases, mismatches }, { ok: true, mode: '32-bit', cases: 1000, mismatches: [] });
  assert.match(Object.keys(known).join(), /^walk_addr_generic: /);
  assert.ok(outcomes.ok > 100);
});
