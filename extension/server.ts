// The language server of `.mmu` files, in a process of its own.
import { startLanguageServer } from 'langium/lsp';
import { NodeFileSystem } from 'langium/node';
import { createConnection, ProposedFeatures } from 'vscode-languageserver/node';
import { createEditorServices } from '../scenario/editor/module.ts';

// How to talk (Node IPC, stdio, a socket) is in the arguments that the client starts the process with.
const connection = createConnection(ProposedFeatures.all);
const { shared } = createEditorServices({ connection, ...NodeFileSystem });
startLanguageServer(shared);
