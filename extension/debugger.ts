import * as vscode from 'vscode';

export const DEBUG_TYPE = 'kvm-mmu';

/** A configuration for the scenario in front of the user, for F5 without a launch.json. */
function configurationFor(uri: vscode.Uri): vscode.DebugConfiguration {
  return { type: DEBUG_TYPE, request: 'launch', name: `Debug ${uri.path.replace(/^.*\//, '')}`, program: uri.fsPath };
}

class ConfigurationProvider implements vscode.DebugConfigurationProvider {
  provideDebugConfigurations(): vscode.DebugConfiguration[] {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: VS Code puts the open file's path there.
    return [{ type: DEBUG_TYPE, request: 'launch', name: 'Debug the current scenario', program: '${file}' }];
  }

  resolveDebugConfiguration(
    _folder: vscode.WorkspaceFolder | undefined,
    config: vscode.DebugConfiguration,
  ): vscode.ProviderResult<vscode.DebugConfiguration> {
    if (config.type || config.request || config.name) return config;
    // F5 with no launch.json at all.
    const document = vscode.window.activeTextEditor?.document;
    if (document?.languageId !== 'mmu') {
      void vscode.window.showErrorMessage(
        'Open a scenario (a .mmu file) to debug it, or write a launch.json with its path as "program".',
      );
      return undefined;
    }
    return configurationFor(document.uri);
  }

  /** Unsaved text would not be what runs. */
  async resolveDebugConfigurationWithSubstitutedVariables(
    _folder: vscode.WorkspaceFolder | undefined,
    config: vscode.DebugConfiguration,
  ): Promise<vscode.DebugConfiguration | undefined> {
    if (typeof config.program === 'string') {
      const open = vscode.workspace.textDocuments.find((document) => document.uri.fsPath === config.program);
      if (open?.isDirty && !(await open.save())) return undefined;
    }
    return config;
  }
}

class AdapterFactory implements vscode.DebugAdapterDescriptorFactory {
  constructor(private readonly extensionUri: vscode.Uri) {}

  createDebugAdapterDescriptor({ configuration }: vscode.DebugSession): vscode.DebugAdapterDescriptor {
    // VS Code asks for exception filters before it says what to launch.
    const { guest, connect, trace, target, lab } = configuration;
    const isScenario = target === 'kvm' || lab !== undefined;
    const kind =
      trace !== undefined
        ? 'recording'
        : guest !== undefined || connect !== undefined
          ? 'guest'
          : isScenario
            ? 'scenario'
            : undefined;
    const onKvm = kind === undefined ? [] : [`--kvm=${kind}`];
    const path = vscode.Uri.joinPath(this.extensionUri, 'dist', 'adapter.cjs').fsPath;
    // On a desktop the extension host's executable is Electron, which this variable turns into Node.
    return new vscode.DebugAdapterExecutable(process.execPath, ['--enable-source-maps', path, ...onKvm], {
      env: { ELECTRON_RUN_AS_NODE: '1' },
    });
  }
}

interface Blocked {
  readonly task: number;
  readonly name: string;
  readonly lock: string;
  readonly owners: readonly string[];
}

async function offerToLetOwnerRun(session: vscode.DebugSession, blocked: Blocked): Promise<void> {
  const choice = 'Let the owner run';
  const chosen = await vscode.window.showInformationMessage(
    `${blocked.name} waits for ${blocked.lock}, held by ${blocked.owners.join(' and ')}.`,
    choice,
  );
  if (chosen !== choice) return;
  try {
    await session.customRequest('mmu/letOwnerRun', { task: blocked.task });
  } catch (error) {
    void vscode.window.showErrorMessage((error as Error).message);
  }
}

async function start(uri: vscode.Uri | undefined, noDebug: boolean): Promise<void> {
  const target = uri ?? vscode.window.activeTextEditor?.document.uri;
  if (!target?.path.endsWith('.mmu')) {
    void vscode.window.showErrorMessage('Open a scenario (a .mmu file) first.');
    return;
  }
  await vscode.debug.startDebugging(vscode.workspace.getWorkspaceFolder(target), configurationFor(target), { noDebug });
}

export function registerDebugger(context: vscode.ExtensionContext): void {
  const provider = new ConfigurationProvider();
  context.subscriptions.push(
    vscode.debug.registerDebugConfigurationProvider(DEBUG_TYPE, provider),
    vscode.debug.registerDebugConfigurationProvider(
      DEBUG_TYPE,
      provider,
      vscode.DebugConfigurationProviderTriggerKind.Dynamic,
    ),
    vscode.debug.registerDebugAdapterDescriptorFactory(DEBUG_TYPE, new AdapterFactory(context.extensionUri)),
    vscode.commands.registerCommand('kvm-mmu.debugScenario', (uri?: vscode.Uri | string) => start(asUri(uri), false)),
    vscode.commands.registerCommand('kvm-mmu.runScenario', (uri?: vscode.Uri | string) => start(asUri(uri), true)),
    vscode.debug.onDidReceiveDebugSessionCustomEvent((event) => {
      if (event.session.type === DEBUG_TYPE && event.event === 'mmu/blocked')
        void offerToLetOwnerRun(event.session, event.body as Blocked);
    }),
  );
}

/** A code lens passes the document as text, a menu as a Uri. */
function asUri(uri: vscode.Uri | string | undefined): vscode.Uri | undefined {
  return typeof uri === 'string' ? vscode.Uri.parse(uri) : uri;
}
