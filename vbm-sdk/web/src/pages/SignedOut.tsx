import { Bullseye } from "@patternfly/react-core";
import KeyIcon from "@patternfly/react-icons/dist/esm/icons/key-icon";
import { Empty } from "../components/Empty";

/** For a browser without a session. */
export function SignedOut() {
  return (
    <Bullseye className="vbm-alone">
      <Empty title="You are not logged in" icon={KeyIcon} command="vbm web login">
        Each login link works once. Type this on the machine where <code>vbmd</code> runs, and open the link that it
        prints.
      </Empty>
    </Bullseye>
  );
}
