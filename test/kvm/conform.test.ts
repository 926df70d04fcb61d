import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cli, cliWithin, file } from '../cli/cli.ts';
import { kvmTest, native } from './kvm.ts';

const CASES = Number(process.env.KVM_MMU_CONFORM_CASES ?? 20_000);
/** What comes of a case at least this often is decided by more than luck. */
const OFTEN = CASES / 200;

interface Told {
  ok: boolean;
  seed: number;
  cases: number;
  differing: number;
  host: { nx: boolean; smep: boolean; smap: boolean; maxPhyAddr: number };
  outcomes: Record<string, number>;
  mismatches: unknown[];
  notTested: { name: string; reason: string }[];
}

/** Error codes of #PF that the cases can lead to, on a machine that has what the rules need. */
function expectedFaults({ nx, smep }: Told['host']): string[] {
  // Of an access to a page that is there or not: by kind, and by privilege level.
  const notPresent = ['0x0', '0x2 W', '0x4 U', '0x6 W|U'];
  const withFetch =
    nx || smep ? ['0x10 F', '0x14 U|F', '0x11 P|F', '0x15 P|U|F', '0x19 P|RSVD|F', '0x1d P|U|RSVD|F'] : [];
  const forbidden = ['0x1 P', '0x3 P|W', '0x5 P|U', '0x7 P|W|U'];
  const reserved = ['0x9 P|RSVD', '0xb P|W|RSVD', '0xd P|U|RSVD', '0xf P|W|U|RSVD'];
  return [...notPresent, ...forbidden, ...reserved, ...withFetch].map((code) => `#PF ${code}`);
}

kvmTest(`engine and KVM agree on ${CASES} accesses through random tables, of every kind`, async () => {
  // A slow machine makes 2,000 a second.
  const timeout = 60_000 + CASES / 2;
  const { status, out, err } = cliWithin(timeout, 'conform', '--seed', '1', '--cases', `${CASES}`, '--json');
  assert.ok(status === 0 || status === 1, `exit status ${status}: ${err}`);
  const told: Told = JSON.parse(out);
  assert.deepEqual(told.mismatches, []);
  assert.deepEqual([status, told.ok, told.seed, told.cases, told.differing], [0, true, 1, CASES, 0]);
  // Cases that all fail at the root would agree as well.
  const rare = ['ok', '#GP', ...expectedFaults(told.host)].filter((kind) => !((told.outcomes[kind] ?? 0) >= OFTEN));
  assert.deepEqual(rare, [], `of these there are fewer than ${OFTEN}: ${JSON.stringify(told.outcomes)}`);
  assert.equal(told.outcomes.stray, undefined);
  assert.ok(told.outcomes.ok! > CASES / 4, `only ${told.outcomes.ok} accesses succeed`);
  const sum = Object.values(told.outcomes).reduce((all, some) => all + some, 0);
  assert.equal(sum, CASES);
  // A machine that lacks what a rule needs says so.
  const untold = (['nx', 'smep', 'smap'] as const).filter(
    (feature) => !told.host[feature] && !told.notTested.some(({ reason }) => reason.includes(feature.toUpperCase())),
  );
  assert.deepEqual(untold, []);
});

kvmTest('one case can be run alone, and comes out the same', async () => {
  const all = cli('conform', '--seed', '7', '--cases', '64', '--json');
  const sum: Record<string, number> = {};
  // Each of the first cases by itself, on a machine of its own.
  for (let number = 0; number < 4; number++) {
    const { status, out, err } = cli('conform', '--seed', '7', '--case', `${number}`, '--json');
    assert.equal(status, 0, err);
    const told: Told = JSON.parse(out);
    assert.equal(told.cases, 1);
    for (const [kind, count] of Object.entries(told.outcomes)) sum[kind] = (sum[kind] ?? 0) + count;
  }
  const outcomes: Told['outcomes'] = JSON.parse(all.out).outcomes;
  assert.ok(
    Object.entries(sum).every(([kind, count]) => count <= outcomes[kind]!),
    JSON.stringify([sum, outcomes]),
  );
  assert.ok(Object.keys(sum).length > 0, JSON.stringify(sum));
});

kvmTest('without the helper or its guest, conform exits 3 and says what to do', async () => {
  const { status, out, err } = cli('conform', '--helper', '/nowhere/helper');
  assert.deepEqual([status, out], [3, '']);
  assert.equal(err, 'kvm-mmu: conform cannot run here: the helper /nowhere/helper is not built: make -C native\n');
  const guest = cli('conform', '--guest', '/nowhere/guest');
  assert.equal(guest.status, 3);
  assert.match(guest.err, /the guest program \/nowhere\/guest is not built: make -C native$/m);
  // A guest that is none, and a helper that ends at once, are named too.
  const empty = cli('conform', '--guest', file('empty', ''));
  assert.equal(empty.status, 3, empty.out);
  assert.match(
    empty.err,
    /conform cannot run here: .*kvm-mmu-helper has ended: exit status 1\nkvm-mmu-helper: .*empty is empty\n$/,
  );
  const ends = cli('conform', '--helper', '/bin/false');
  assert.equal(ends.status, 3, ends.err);
  assert.match(ends.err, /\/bin\/false has ended: exit status 1/);
});

test('conform refuses what it does not understand', () => {
  assert.equal(cli('conform', 'x').status, 2);
  assert.match(cli('conform', '--cases', '4294967296').err, /--cases must be below 2³², not 4294967296/);
  assert.match(cli('conform', '--case', '1', '--cases', '2').err, /--case runs one case, --cases says how many/);
  assert.match(cli('conform', '--paging', '3-level').err, /--paging takes 4-level, 32-bit or pae, not 3-level/);
  assert.match(cli('conform', '--seed', 'abc', '--helper', native('x')).err, /abc/);
});
