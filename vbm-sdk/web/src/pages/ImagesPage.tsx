import { Button, ExpandableSection, PageSection, Progress } from "@patternfly/react-core";
import ImageIcon from "@patternfly/react-icons/dist/esm/icons/hdd-icon";
import { useEffect, useRef, useState } from "react";
import { call } from "../api/http";
import type { Image } from "../api/types";
import { diskFormat, upload } from "../api/upload";
import * as cli from "../cli/commands";
import { useDo } from "../components/act";
import { CliBox } from "../components/CliBox";
import { type Column, DataTable } from "../components/DataTable";
import { useDialog } from "../components/Dialogs";
import { Empty } from "../components/Empty";
import { FileField, TextField } from "../components/fields";
import { FormModal } from "../components/FormModal";
import { PageHeader } from "../components/PageHeader";
import { Ago } from "../components/time";
import { bytes } from "../lib/format";
import { nameProblem } from "../lib/names";
import { useLive } from "../live/context";
import { imagesOf, vmsOf } from "../live/store";

export function ImagesPage() {
  const live = useLive();
  const open = useDialog();
  const images = imagesOf(live);
  const users = (image: Image) => vmsOf(live).filter((vm) => vm.spec.image === image.id);
  const create = (
    <Button onClick={() => open((close) => <ImportForm close={close} />)} data-testid="import-image">
      Import image
    </Button>
  );
  const columns: Column<Image>[] = [
    { title: "Name", by: (image) => image.name, cell: (image) => image.name },
    { title: "Format", cell: (image) => image.spec.format },
    { title: "File", by: (image) => image.spec.file_bytes, cell: (image) => bytes(image.spec.file_bytes) },
    { title: "Disk", by: (image) => image.spec.virtual_bytes, cell: (image) => bytes(image.spec.virtual_bytes) },
    { title: "Boots from", cell: (image) => (image.spec.boot.from === "kernel" ? "its own kernel" : "its disk") },
    { title: "Machines", by: (image) => users(image).length, cell: (image) => users(image).length },
    { title: "Imported", by: (image) => image.created_at, cell: (image) => <Ago at={image.created_at} /> },
  ];
  return (
    <>
      <PageHeader
        title="Images"
        about="What virtual machines are made of. Each machine's disk is a linked clone: it holds only what the machine writes."
        actions={images.length > 0 && create}
      />
      <PageSection isFilled>
        <DataTable
          label="Images"
          rows={images}
          columns={columns}
          rowKey={(image) => image.name}
          text={(image) => image.name}
          actions={(image) => [
            {
              title: "Delete",
              description: cli.imageDelete(image.name),
              isDanger: true,
              onClick: () => open((close) => <DeleteImage image={image} close={close} />),
            },
          ]}
          empty={
            <Empty
              title="No images yet"
              icon={ImageIcon}
              action={create}
              command="vbm image import debian --disk debian-12.qcow2"
            >
              An image is the disk of an operating system, as a qcow2 or raw file. Distributions publish them as "cloud
              images".
            </Empty>
          }
        />
        {images.length > 0 && <CliBox command={cli.images()} />}
      </PageSection>
    </>
  );
}

function DeleteImage({ image, close }: { image: Image; close: () => void }) {
  const act = useDo();
  const command = cli.imageDelete(image.name);
  return (
    <FormModal
      danger
      size="small"
      title={`Delete image ${image.name}?`}
      description="An image can be deleted when no virtual machine rests on it."
      submit="Delete"
      command={command}
      onClose={close}
      onSubmit={() =>
        act({
          title: `Delete image ${image.name}`,
          command,
          run: () => call("delete", "/v1/images/{image}", { path: { image: image.id } }),
        })
      }
    />
  );
}

interface Sending {
  name: string;
  sent: number;
  total: number;
}

function ImportForm({ close }: { close: () => void }) {
  const act = useDo();
  const [name, setName] = useState("");
  const [disk, setDisk] = useState<File>();
  const [format, setFormat] = useState<"qcow2" | "raw">("qcow2");
  const [kernel, setKernel] = useState<File>();
  const [initrd, setInitrd] = useState<File>();
  const [cmdline, setCmdline] = useState("console=ttyS0");
  const [sending, setSending] = useState<Sending>();
  const abort = useRef(new AbortController());
  // Closing the dialog cuts an upload off; vbmd throws away what came of it.
  useEffect(() => {
    abort.current = new AbortController();
    return () => abort.current.abort();
  }, []);

  const problem = nameProblem(name);
  const half = Boolean(kernel) !== Boolean(initrd);
  const command = cli.imageImport({
    name,
    disk: disk?.name ?? "",
    format,
    kernel: kernel?.name ?? "",
    initrd: initrd?.name ?? "",
    cmdline,
  });

  const chooseDisk = (file: File | undefined) => {
    setDisk(file);
    if (file) void diskFormat(file).then(setFormat);
  };
  const send = async (file: File) => {
    setSending({ name: file.name, sent: 0, total: file.size });
    const blob = await upload(
      file,
      (sent) => setSending({ name: file.name, sent, total: file.size }),
      abort.current.signal,
    );
    return blob.digest;
  };
  const run = async () => {
    if (!disk) return;
    try {
      const content = await send(disk);
      const boot =
        kernel && initrd
          ? { from: "kernel" as const, kernel: await send(kernel), initrd: await send(initrd), cmdline }
          : { from: "disk" as const };
      await act({
        title: `Import image ${name}`,
        command,
        run: () => call("post", "/v1/images", { body: { name, disk: content, format, boot } }),
      });
    } finally {
      setSending(undefined);
    }
  };

  return (
    <FormModal
      title="Import an image"
      submit="Import"
      command={command}
      ready={name !== "" && disk !== undefined && !problem && !half}
      onClose={close}
      onSubmit={run}
    >
      <TextField label="Name" required value={name} onChange={setName} problem={problem} placeholder="debian" />
      <FileField
        label="Disk"
        required
        file={disk}
        onChange={chooseDisk}
        help={disk ? `${bytes(disk.size)}, ${format}` : "A qcow2 or raw file."}
      />
      <ExpandableSection toggleText="More: a kernel of its own, which boots sooner without KVM">
        <div className="vbm-rows">
          <FileField label="Kernel" file={kernel} onChange={setKernel} />
          <FileField
            label="Initial RAM disk"
            file={initrd}
            onChange={setInitrd}
            problem={half ? "A kernel and its initial RAM disk belong together." : undefined}
          />
          <TextField label="Kernel's command line" value={cmdline} onChange={setCmdline} />
        </div>
      </ExpandableSection>
      {sending && (
        <Progress
          title={`Sending ${sending.name}: ${bytes(sending.sent)} of ${bytes(sending.total)}`}
          value={sending.total > 0 ? Math.round((sending.sent / sending.total) * 100) : 100}
        />
      )}
    </FormModal>
  );
}
