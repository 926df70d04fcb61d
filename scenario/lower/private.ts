import { GUEST_ASID, type VmType } from '../../engine/attributes/state.ts';
import { rightsMask } from '../../engine/attributes/vmpl.ts';
import type { Expression } from '../../engine/expression.ts';
import type { Statement } from '../../engine/program.ts';
import { type Problems, spanOf } from '../diagnostics.ts';
import type * as Ast from '../generated/ast.ts';
import { constant, isConstant, lowerExpression, type Names } from './expression.ts';
import { aligned, lowerRange, lowerSize } from './ranges.ts';

// Statements about private and shared memory.

type PrivateMemory = Ast.Convert | Ast.Punch | Ast.Pvalidate | Ast.Accept | Ast.Rmpadjust | Ast.RunVmpl | Ast.Rmpupdate;

/** Why a VM has no such statement, in words that begin with it; undefined where it has. */
export function privateMemoryProblem(
  { $type }: PrivateMemory | Ast.Access,
  word: string,
  vm: VmType = 'ordinary',
): string | undefined {
  switch ($type) {
    case 'Convert':
    case 'Punch':
    case 'Access':
      return vm === 'ordinary'
        ? `${word}: an ordinary VM has no private memory; say vm snp, tdx or software-protected`
        : undefined;
    case 'Accept':
      return vm === 'tdx' ? undefined : 'accept: only guests of TDX have it; say vm tdx, or of SNP pvalidate';
    case 'Rmpupdate':
      return vm === 'snp' ? undefined : 'rmpupdate: only SNP has an RMP; say vm snp';
    default:
      return vm === 'snp' ? undefined : `${word}: only guests of SNP have it; say vm snp`;
  }
}

export function lowerPrivateMemory(node: PrivateMemory, names: Names, problems: Problems): Statement | undefined {
  const span = spanOf(node);
  switch (node.$type) {
    case 'Convert': {
      const range = lowerComputedRange(node, names, problems);
      return range && { kind: 'convert', ...range, isPrivate: node.kind === 'private', span };
    }
    case 'Punch': {
      const range = lowerComputedRange(node, names, problems);
      return range && { kind: 'punch', ...range, span };
    }
    case 'Pvalidate': {
      const address = lowerExpression(node.address, problems, names);
      const level = lowerLevel(node.size, 'pvalidate', problems);
      if (!address || !level) return undefined;
      return {
        kind: 'page-instruction',
        address,
        instruction: { name: 'PVALIDATE', level, validated: !node.off },
        span,
      };
    }
    case 'Accept': {
      const address = lowerExpression(node.address, problems, names);
      return (
        address && { kind: 'page-instruction', address, instruction: { name: 'TDG.MEM.PAGE.ACCEPT', level: 1 }, span }
      );
    }
    case 'Rmpadjust': {
      const address = lowerExpression(node.address, problems, names);
      const level = lowerLevel(node.size, 'rmpadjust', problems);
      const vmpl = lowerVmpl(node.vmpl, problems);
      if (!address || !level || vmpl === undefined) return undefined;
      const rights = rightsMask(node.rights ?? '---');
      return { kind: 'page-instruction', address, instruction: { name: 'RMPADJUST', level, vmpl, rights }, span };
    }
    case 'RunVmpl': {
      const vmpl = lowerVmpl(node.vmpl, problems);
      return vmpl === undefined ? undefined : { kind: 'vmpl', vmpl, span };
    }
    case 'Rmpupdate':
      return lowerRmpupdate(node, problems);
  }
}

/** A range whose start may depend on a loop's variable; what is constant is judged at once. */
function lowerComputedRange(
  node: Ast.Convert | Ast.Punch,
  names: Names,
  problems: Problems,
): { readonly base: Expression; readonly size: bigint } | undefined {
  const base = lowerExpression(node.base, problems, names);
  if (!base) return undefined;
  if (isConstant(base)) {
    const range = lowerRange(node.base, node.size, 'gpa', problems);
    return range && { base: { kind: 'number', value: range.base }, size: range.size };
  }
  const size = lowerSize(node.size, problems);
  return size === undefined ? undefined : { base, size };
}

/** The RMP has pages of two sizes; without one, 4K. */
function lowerLevel(node: Ast.Expression | undefined, word: string, problems: Problems): 1 | 2 | undefined {
  if (!node) return 1;
  const size = constant(node, 'a page size', problems);
  if (size === undefined) return undefined;
  if (size === 0x1000n) return 1;
  return size === 0x20_0000n ? 2 : problems.error(node, `${word} takes pages of 4K or 2M`);
}

function lowerVmpl(node: Ast.Expression, problems: Problems): number | undefined {
  const vmpl = constant(node, 'a VMPL', problems);
  if (vmpl === undefined) return undefined;
  return vmpl > 3n ? problems.error(node, `vmpl ${vmpl} is out of range: 0 … 3`) : Number(vmpl);
}

function lowerRmpupdate(node: Ast.Rmpupdate, problems: Problems): Statement | undefined {
  const gpa = constant(node.gpa, 'gpa', problems);
  const level = lowerLevel(node.size, 'rmpupdate', problems);
  const target = node.target ? constant(node.target, 'gpa', problems) : gpa;
  const asid = node.asid ? constant(node.asid, 'an ASID', problems) : BigInt(GUEST_ASID);
  if (gpa === undefined || level === undefined || target === undefined || asid === undefined) return undefined;
  if (!aligned(node.gpa, 'gpa', gpa, problems) || !aligned(node.target ?? node.gpa, 'gpa', target, problems))
    return undefined;
  if (asid < 1n || asid > 0xffff_ffffn)
    return problems.error(node.asid, `asid ${asid} is out of range: 1 … 0xffffffff; the hypervisor’s pages are shared`);
  const to = node.kind === 'private' ? { to: { gpa: target, asid: Number(asid) } } : {};
  return { kind: 'rmpupdate', gpa, level, ...to, span: spanOf(node) };
}
