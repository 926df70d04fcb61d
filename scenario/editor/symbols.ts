import type { LangiumDocument } from 'langium';
import type { DocumentSymbolProvider } from 'langium/lsp';
import { type DocumentSymbol, SymbolKind } from 'vscode-languageserver-types';
import { type Guest, isScenario, type Machine, type Task } from '../generated/ast.ts';

/** The outline: a file's blocks. */
export class MmuSymbolProvider implements DocumentSymbolProvider {
  getSymbols(document: LangiumDocument): DocumentSymbol[] {
    const { value } = document.parseResult;
    if (!isScenario(value)) return [];
    const blocks = [...value.machines, ...value.guests, ...value.tasks];
    blocks.sort((a, b) => (a.$cstNode?.offset ?? 0) - (b.$cstNode?.offset ?? 0));
    return blocks.flatMap((block): DocumentSymbol[] => {
      const range = block.$cstNode?.range;
      if (!range) return [];
      return [{ ...describe(block), range, selectionRange: { start: range.start, end: range.start } }];
    });
  }
}

function describe(block: Machine | Guest | Task): Pick<DocumentSymbol, 'name' | 'kind' | 'detail'> {
  switch (block.$type) {
    case 'Machine':
      return { name: `machine ${block.architecture ?? ''}`.trim(), kind: SymbolKind.Module };
    case 'Guest':
      return { name: `${block.stage ? 'nested' : 'guest'} ${block.name ?? ''}`, kind: SymbolKind.Namespace };
    case 'Vcpu': {
      const detail = block.guest ? `in ${block.guest.$refText}` : 'paging off';
      // What is being written may lack its number.
      return { name: `vcpu ${block.id?.$cstNode?.text ?? ''}`, kind: SymbolKind.Function, detail };
    }
    case 'Host':
      return { name: `host ${block.name ?? ''}`, kind: SymbolKind.Function };
  }
}
