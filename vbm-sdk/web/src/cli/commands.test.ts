import { describe, expect, it } from "vitest";
import * as cli from "./commands";

const FORM: cli.Launch = {
  image: "tiny",
  name: "",
  vcpus: 1,
  memoryMib: 256,
  diskMib: null,
  nics: [],
  driver: null,
  node: null,
  stopped: false,
  labels: {},
};

describe("launching", () => {
  it("says nothing that goes without saying", () => {
    expect(cli.launch(FORM)).toBe("vbm launch tiny");
    expect(cli.launch({ ...FORM, image: "" })).toBe("vbm launch IMAGE");
  });

  it("gives a single NIC its convenient options", () => {
    const nics = [{ network: "lan", address: "10.0.0.5", groups: ["web", "ssh"] }];
    expect(cli.launch({ ...FORM, name: "web1", nics })).toBe(
      "vbm launch tiny web1 --network lan --group web --group ssh --address 10.0.0.5",
    );
  });

  it("gives several NICs a word each", () => {
    const nics = [{ network: "lan", address: "10.0.0.5", groups: ["web"] }, { network: "backup" }];
    expect(cli.launch({ ...FORM, vcpus: 2, memoryMib: 1024, diskMib: 10_240, nics })).toBe(
      "vbm launch tiny --cpus 2 --memory 1G --disk 10G --network lan,address=10.0.0.5,group=web --network backup",
    );
  });

  it("quotes what people write", () => {
    const labels = { note: `it's <script>alert("x")</script> 虚拟机`, "-x": "1" };
    expect(cli.launch({ ...FORM, stopped: true, driver: "qemu", node: "eu/n1", labels })).toBe(
      `vbm launch tiny --driver qemu --node eu/n1 --stopped ` +
        `--label 'note=it'\\''s <script>alert("x")</script> 虚拟机' --label=-x=1`,
    );
  });
});

describe("power", () => {
  it("is one verb each", () => {
    expect(cli.power("start", "web")).toBe("vbm start web");
    expect(cli.power("restart", "web")).toBe("vbm restart web");
    expect(cli.power("force-off", "web")).toBe("vbm stop web --force");
    expect(cli.power("delete", "web")).toBe("vbm delete web");
    expect(cli.power("delete", "web", true)).toBe("vbm delete web --force");
  });
});

describe("networks", () => {
  it("are made as the form says", () => {
    expect(cli.networkCreate({ name: "lan", cidr: "10.0.0.0/24", mode: "nat" })).toBe(
      "vbm network create lan 10.0.0.0/24",
    );
    expect(
      cli.networkCreate({
        name: "lab",
        cidr: "10.1.0.0/24",
        mode: "isolated",
        gateway: "10.1.0.9",
        pool_first: "10.1.0.100",
        pool_last: "10.1.0.200",
        dns: ["9.9.9.9", "1.1.1.1"],
        domain: "lab.example",
        mtu: 1400,
        lease_seconds: 600,
      }),
    ).toBe(
      "vbm network create lab 10.1.0.0/24 --mode isolated --gateway 10.1.0.9 --pool 10.1.0.100-10.1.0.200 " +
        "--dns 9.9.9.9 --dns 1.1.1.1 --domain lab.example --mtu 1400 --lease 600s",
    );
    expect(
      cli.networkCreate({
        name: "office",
        cidr: "192.168.1.0/24",
        mode: "bridged",
        uplink: "br-lan",
        serve_dhcp: true,
      }),
    ).toBe("vbm network create office 192.168.1.0/24 --mode bridged --uplink br-lan --serve-dhcp");
  });

  it("are forwarded to in the form of the command", () => {
    const form = { vm: "web", listen_port: 8080, target_port: 80 };
    expect(cli.forwardCreate(form)).toBe("vbm forward create web 8080:80");
    expect(
      cli.forwardCreate({ ...form, listen_address: "127.0.0.1", protocol: "udp", name: "dns", network: "lan" }),
    ).toBe("vbm forward create web 127.0.0.1:8080:80/udp --name dns --network lan");
  });

  it("have floating IPs, limits and allowed addresses", () => {
    expect(cli.floatingCreate("", "shop")).toBe("vbm floating-ip create --name shop");
    expect(cli.floatingCreate("192.0.2.50", "")).toBe("vbm floating-ip create 192.0.2.50");
    expect(cli.floatingAttach("shop", "web", "lan")).toBe("vbm floating-ip attach shop web --network lan");
    expect(cli.floatingPool([])).toBe("vbm floating-ip pool none");
    expect(cli.portLimit("web", "lan", { in_kbit_per_second: 100_000, connections: 500 })).toBe(
      "vbm port limit web --in 100mbit --out none --connections 500 --network lan",
    );
    expect(cli.portAllowed("web", "lan", ["10.0.0.7"], ["10.0.0.8", "fd00::5"])).toBe(
      "vbm port allow web 10.0.0.8 fd00::5 --network lan\nvbm port deny web 10.0.0.7 --network lan",
    );
  });

  it("have groups whose rules are words", () => {
    const rules = [
      { protocol: "tcp" as const, ports: "80", from: null },
      { protocol: "any" as const, ports: null, from: "10.0.0.0/8" },
    ];
    expect(cli.groupCreate("web", rules)).toBe("vbm group create web tcp/80 any@10.0.0.0/8");
    expect(cli.groupChange("vm1", "lan", ["a", "b"], ["b", "c"])).toBe(
      "vbm group attach c vm1 --network lan\nvbm group detach a vm1 --network lan",
    );
  });
});

describe("images", () => {
  const form: cli.Import = { name: "tiny", disk: "my disk.raw", format: "raw", kernel: "", initrd: "", cmdline: "" };

  it("are imported from files by their names", () => {
    expect(cli.imageImport(form)).toBe("vbm image import tiny --disk 'my disk.raw' --format raw");
    expect(
      cli.imageImport({ ...form, disk: "d", format: "qcow2", kernel: "k", initrd: "i", cmdline: "console=tty0 quiet" }),
    ).toBe("vbm image import tiny --disk d --kernel k --initrd i --cmdline 'console=tty0 quiet'");
  });
});
