import type { LangiumDocument } from 'langium';
import type { CodeLensProvider } from 'langium/lsp';
import type { CodeLens } from 'vscode-languageserver-types';
import { isScenario } from '../generated/ast.ts';

/** Debug and Run above the machine, or above the first line when there is none. */
export class MmuCodeLensProvider implements CodeLensProvider {
  provideCodeLens(document: LangiumDocument): CodeLens[] {
    const { value } = document.parseResult;
    const line = (isScenario(value) && value.machines[0]?.$cstNode?.range.start.line) || 0;
    const range = { start: { line, character: 0 }, end: { line, character: 0 } };
    const uri = document.uri.toString();
    return [
      { range, command: { title: '$(debug-alt) Debug', command: 'kvm-mmu.debugScenario', arguments: [uri] } },
      { range, command: { title: '$(play) Run', command: 'kvm-mmu.runScenario', arguments: [uri] } },
    ];
  }
}
