import { EmptyFileSystem, inject, type Module } from 'langium';
import {
  createDefaultModule,
  createDefaultSharedModule,
  type DefaultSharedModuleContext,
  type LangiumServices,
  type LangiumSharedServices,
  type PartialLangiumServices,
} from 'langium/lsp';
import { MmuGeneratedModule, MmuGeneratedSharedModule } from '../generated/module.ts';
import { MmuParserModule } from '../module.ts';
import { MmuCodeLensProvider } from './code-lens.ts';
import { MmuCompletionProvider } from './completion.ts';
import { MmuFormatter } from './format.ts';
import { MmuHoverProvider } from './hover.ts';
import { MmuScopeProvider } from './scope.ts';
import { MmuSymbolProvider } from './symbols.ts';
import { MmuValidator } from './validator.ts';

const MmuEditorModule: Module<LangiumServices, PartialLangiumServices> = {
  references: { ScopeProvider: (services) => new MmuScopeProvider(services) },
  validation: { DocumentValidator: () => new MmuValidator() },
  lsp: {
    CodeLensProvider: () => new MmuCodeLensProvider(),
    CompletionProvider: (services) => new MmuCompletionProvider(services),
    DocumentSymbolProvider: () => new MmuSymbolProvider(),
    Formatter: (services) => new MmuFormatter(services),
    HoverProvider: (services) => new MmuHoverProvider(services),
  },
};

/** The services of a language server; without a connection, for tests. */
export function createEditorServices(context: Partial<DefaultSharedModuleContext> = {}): {
  shared: LangiumSharedServices;
  mmu: LangiumServices;
} {
  const shared = inject(createDefaultSharedModule({ ...EmptyFileSystem, ...context }), MmuGeneratedSharedModule);
  const mmu: LangiumServices = inject(
    createDefaultModule({ shared }),
    MmuGeneratedModule,
    MmuParserModule,
    MmuEditorModule,
  );
  shared.ServiceRegistry.register(mmu);
  return { shared, mmu };
}
