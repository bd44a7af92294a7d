import { Button, Form, Modal, ModalBody, ModalFooter, ModalHeader } from "@patternfly/react-core";
import { type FormEvent, type ReactNode, useId, useState } from "react";
import { CliBox } from "./CliBox";
import { ErrorNote } from "./ErrorNote";

interface Props {
  title: string;
  description?: ReactNode;
  submit: string;
  /** What is done, as a command. */
  command: string;
  danger?: boolean;
  ready?: boolean;
  size?: "small" | "medium" | "large";
  /** Does it. A failure is shown, and the dialog stays open; success closes it. */
  onSubmit: () => Promise<void>;
  onClose: () => void;
  children?: ReactNode;
}

/** A form, or a question, that shows its command and its failure. */
export function FormModal({ ready = true, danger = false, size = "medium", ...props }: Props) {
  const id = useId();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();

  const run = async (event: FormEvent) => {
    event.preventDefault();
    if (busy || !ready) return;
    setBusy(true);
    setError(undefined);
    try {
      await props.onSubmit();
      props.onClose();
    } catch (failed) {
      setError(failed);
      setBusy(false);
    }
  };

  return (
    <Modal
      isOpen
      variant={size}
      onClose={props.onClose}
      onEscapePress={(event) => !isOfMenu(event) && props.onClose()}
      aria-labelledby={`${id}-title`}
    >
      <ModalHeader
        title={props.title}
        labelId={`${id}-title`}
        {...(danger ? { titleIconVariant: "warning" as const } : {})}
        description={props.description}
      />
      <ModalBody>
        <Form id={`${id}-form`} onSubmit={(event) => void run(event)} onChange={() => setError(undefined)} noValidate>
          {props.children}
          {error !== undefined && <ErrorNote error={error} />}
        </Form>
      </ModalBody>
      <ModalFooter className="vbm-form-end">
        <CliBox command={props.command} />
        <Button
          type="submit"
          form={`${id}-form`}
          variant={danger ? "danger" : "primary"}
          isDisabled={!ready || busy}
          isLoading={busy}
        >
          {props.submit}
        </Button>
        <Button variant="link" onClick={props.onClose}>
          Cancel
        </Button>
      </ModalFooter>
    </Modal>
  );
}

/** Escape in an open menu closes the menu, and not the form that it stands in. */
function isOfMenu(event: KeyboardEvent): boolean {
  const target = event.target instanceof Element ? event.target : undefined;
  return Boolean(target?.closest('.pf-v6-c-menu, .pf-v6-c-menu-toggle[aria-expanded="true"]'));
}
