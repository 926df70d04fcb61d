import { type DocumentValidator, type LangiumDocument, UriUtils } from 'langium';
import { type Diagnostic, DiagnosticSeverity } from 'vscode-languageserver-types';
import { isScenario } from '../generated/ast.ts';
import { analyse } from '../index.ts';

/** Says in the editor what `parseScenario` says anywhere else. */
export class MmuValidator implements DocumentValidator {
  async validateDocument(document: LangiumDocument): Promise<Diagnostic[]> {
    const { value, ...result } = document.parseResult;
    if (!isScenario(value)) throw new Error(`${UriUtils.basename(document.uri)} is no scenario`);
    return analyse({ ...result, value }).diagnostics.map(({ severity, message, span }) => ({
      severity: severity === 'error' ? DiagnosticSeverity.Error : DiagnosticSeverity.Warning,
      message,
      source: 'mmu',
      range: {
        start: { line: span.line - 1, character: span.column - 1 },
        end: { line: span.endLine - 1, character: span.endColumn - 1 },
      },
    }));
  }
}
