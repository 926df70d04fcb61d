import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errorCodeWords, permissionBitmaps, permissionFault, permissionReasons } from './permission.ts';

const ENTRIES = { write: 'PTE 1', user: 'PDE 2', execute: 'PDPTE 3' };
const flags = [false, true];

/**
 * SDM vol. 3, 4.6.1 and 4.6.2, paragraph by paragraph: what a mapped address with these rights does to an access.
 * `rights`: writable, user and executable, each the AND over all entries.
 */
function manual(
  state: {
    wp: boolean;
    nxe: boolean;
    smep: boolean;
    smap: boolean;
    ac: boolean;
    pke: boolean;
    ad: boolean;
    wd: boolean;
  },
  rights: { w: boolean; u: boolean; x: boolean },
  access: { kind: string; user: boolean; implicit: boolean },
) {
  const rules: string[] = [];
  const { kind, user } = access;
  if (user) {
    if (!rights.u) rules.push('user to supervisor page');
    if (kind === 'write' && !rights.w) rules.push('read-only');
  } else {
    if (rights.u && kind !== 'fetch' && state.smap && (access.implicit || !state.ac)) rules.push('SMAP');
    if (rights.u && kind === 'fetch' && state.smep) rules.push('SMEP');
    if (kind === 'write' && !rights.w && state.wp) rules.push('read-only');
  }
  if (kind === 'fetch' && state.nxe && !rights.x) rules.push('NX');
  const keyed = state.pke && rights.u && kind !== 'fetch';
  const denied = keyed && (state.ad || (state.wd && kind === 'write' && (user || state.wp)));
  if (denied) rules.push('PKRU');
  return { rules, code: rules.length === 0 ? 0 : denied ? 0x21 : 0x01 };
}

test('every combination of rights, access and control bits faults as the manual says, with as many reasons as rules', () => {
  let count = 0;
  for (let n = 0; n < 256; n++) {
    const bit = (number: number): boolean => ((n >> number) & 1) !== 0;
    const state = {
      wp: bit(0),
      nxe: bit(1),
      smep: bit(2),
      smap: bit(3),
      ac: bit(4),
      pke: bit(5),
      ad: bit(6),
      wd: bit(7),
    };
    // Key 5's two bits; the neighbours say the opposite, so that a wrong key is noticed.
    const own = (state.ad ? 1 : 0) | (state.wd ? 2 : 0);
    const pkru = ((own << 10) | ((own ^ 3) << 8) | ((own ^ 3) << 12)) >>> 0;
    const protection = { ...state, pkru };
    const bitmaps = permissionBitmaps(protection);
    for (const w of flags)
      for (const u of flags)
        for (const x of flags)
          for (const kind of ['read', 'write', 'fetch'])
            for (const user of flags)
              for (const implicit of user ? [false] : flags) {
                const expected = manual(state, { w, u, x }, { kind, user, implicit });
                const bits = (kind === 'write' ? 2 : kind === 'fetch' ? 16 : 0) | (user ? 4 : 0);
                const access = (x ? 1 : 0) | (w ? 2 : 0) | (u ? 4 : 0);
                const where = JSON.stringify({ ...state, w, u, x, kind, user, implicit });
                assert.equal(permissionFault(bitmaps, protection, access, 5, { bits, implicit }), expected.code, where);
                const reasons = permissionReasons(protection, access, 5, { bits, implicit }, ENTRIES);
                assert.equal(reasons.length, expected.rules.length, `${where}: ${reasons.join('; ')}`);
                count++;
              }
  }
  assert.equal(count, 256 * 8 * 9);
});

test('reasons name the entry, the bit and the register', () => {
  const state = { wp: true, nxe: true, smep: true, smap: true, ac: false, pke: true, pkru: 0b10 << 10 };
  const why = (access: number, bits: number, implicit = false, change: Partial<typeof state> = {}) =>
    permissionReasons({ ...state, ...change }, access, 5, { bits, implicit }, ENTRIES);
  assert.deepEqual(why(1, 2), ['PTE 1 is read-only (W=0) and CR0.WP is 1']);
  assert.deepEqual(why(5, 6), ['PTE 1 is read-only (W=0)', 'PKRU disables writes to pages of key 5']);
  assert.deepEqual(why(3, 4), ['PDE 2 is for the supervisor (U=0) and the access is at CPL 3']);
  assert.deepEqual(why(2, 16), ['PDPTE 3 forbids execution (NX=1)']);
  assert.deepEqual(why(7, 16), ['CR4.SMEP forbids the supervisor to execute a user page (U=1 in every entry)']);
  assert.deepEqual(why(7, 0), [
    'CR4.SMAP forbids the supervisor to access a user page (U=1 in every entry) while RFLAGS.AC is 0',
  ]);
  assert.deepEqual(why(7, 0, true, { ac: true }), [
    'CR4.SMAP forbids the supervisor to access a user page (U=1 in every entry), implicitly, whatever RFLAGS.AC says',
  ]);
  assert.deepEqual(why(7, 4, false, { pkru: 0b01 << 10 }), ['PKRU disables access to pages of key 5']);
});

test('error codes are printed as the tracepoints print them', () => {
  assert.equal(errorCodeWords(0), '0x0');
  assert.equal(errorCodeWords(0x27), '0x27 P|W|U|PK');
  assert.equal(errorCodeWords(0x1d), '0x1d P|U|RSVD|F');
});
