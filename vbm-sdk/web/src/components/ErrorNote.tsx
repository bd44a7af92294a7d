import { Alert, AlertActionCloseButton } from "@patternfly/react-core";
import { asApiError } from "../api/http";
import type { Failure } from "../api/types";

interface Props {
  error: unknown;
  onClose?: () => void;
}

/** A failure in its three parts: what, why, what to do. */
export function ErrorNote({ error, onClose }: Props) {
  const { what, why, fix } = partsOf(error);
  const close = onClose && <AlertActionCloseButton onClose={onClose} />;
  return (
    <Alert variant="danger" isInline title={sentence(what)} actionClose={close} data-testid="error">
      <ErrorBody why={why} fix={fix} />
    </Alert>
  );
}

export function ErrorBody({ why, fix }: { why: string; fix: string }) {
  return (
    <dl className="vbm-error">
      <dt>Why</dt>
      <dd>{why}</dd>
      <dt>What to do</dt>
      <dd>{fix}</dd>
    </dl>
  );
}

function isFailure(error: unknown): error is Failure {
  return typeof error === "object" && error !== null && "what" in error && "why" in error && "fix" in error;
}

export function partsOf(error: unknown): { what: string; why: string; fix: string } {
  return isFailure(error) ? error : asApiError(error);
}

/** Errors begin in lower case where they follow other words; a title does not. */
export function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
