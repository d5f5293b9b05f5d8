// The server under test: the mock, or `calotype serve` of a given program. One port, started and ended as often as a test likes.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const START_MS = 60_000;

// How each program is told what a test needs: { token, fixed (prompts), idle (seconds) }.
const PROGRAMS = {
  mock: {
    command: (port) => [process.execPath, new URL("mock.mjs", import.meta.url).pathname, "--port", port],
    token: (token) => ["--token", token],
    fixed: () => ["--fixed"],
    idle: (seconds) => ["--idle", seconds],
  },
  calotype: {
    command: (port, program) => [program, "serve", "--address", `127.0.0.1:${port}`],
    token: (token) => ["--token-file", file("token", [token])],
    fixed: (prompts) => ["--fixed-prompts", file("prompts", prompts)],
    idle: (seconds) => ["--idle-reset", seconds],
  },
};

export class Server {
  // `program`: the path of calotype, or null for the mock.
  static async start(program, options = {}) {
    const server = new Server();
    server.port = await freePort();
    server.url = `http://127.0.0.1:${server.port}/`;
    const { command, ...flags } = PROGRAMS[program ? "calotype" : "mock"];
    server.command = [
      ...command(String(server.port), program),
      ...Object.entries(options).flatMap(([name, value]) => flags[name](value).map(String)),
    ];
    server.token = options.token;
    await server.start();
    return server;
  }

  async start() {
    const [program, ...words] = this.command;
    this.child = spawn(program, words, { stdio: ["ignore", "ignore", "ignore"] });
    this.ended = new Promise((resolve) => this.child.once("close", resolve));
    this.child.once("error", (error) => console.error(`${program}: ${error.message}`));
    const until = Date.now() + START_MS;
    while (!(await this.info().catch(() => null))) {
      if (Date.now() > until || this.child.exitCode !== null) throw new Error(`no answer from: ${this.command.join(" ")}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  // As a power cut does it.
  async kill() {
    this.child.kill("SIGKILL");
    await this.ended;
  }

  info() {
    return this.json("api/info");
  }

  async json(path, options = {}) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const response = await fetch(this.url + path, { ...options, headers: { ...headers, "Content-Type": "application/json" } });
    return Object.assign(await response.json(), { http: response.status });
  }

  post(path, body = {}) {
    return this.json(path, { method: "POST", body: JSON.stringify(body) });
  }
}

// A network that can fail: passes connections on to the server, until it is cut.
export class Network {
  static async before(server) {
    const network = new Network();
    network.whole = true;
    network.sockets = new Set();
    network.listener = createServer((socket) => network.pass(socket, server.port));
    await new Promise((resolve) => network.listener.listen(0, "127.0.0.1", resolve));
    network.url = `http://127.0.0.1:${network.listener.address().port}/`;
    return network;
  }

  pass(socket, port) {
    if (!this.whole) return socket.destroy();
    const beyond = connect(port, "127.0.0.1");
    for (const [one, other] of [[socket, beyond], [beyond, socket]]) {
      this.sockets.add(one);
      one.pipe(other);
      one.on("error", () => other.destroy());
      one.on("close", () => { this.sockets.delete(one); other.destroy(); });
    }
    return undefined;
  }

  cut() {
    this.whole = false;
    for (const socket of this.sockets) socket.destroy();
  }

  mend() {
    this.whole = true;
  }

  end() {
    this.cut();
    this.listener.close();
  }
}

function file(name, lines) {
  const path = join(mkdtempSync(join(tmpdir(), "calotype-kiosk-")), `${name}.txt`);
  writeFileSync(path, `${lines.join("\n")}\n`);
  process.once("exit", () => rmSync(dirname(path), { recursive: true }));
  return path;
}

function freePort() {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}
