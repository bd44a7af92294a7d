import { PageSection } from "@patternfly/react-core";
import SearchIcon from "@patternfly/react-icons/dist/esm/icons/search-icon";
import { Empty } from "../components/Empty";
import { Link } from "../navigation";

export function LostPage({ path }: { path: string }) {
  return (
    <PageSection isFilled>
      <Empty
        title="Nothing is here"
        icon={SearchIcon}
        action={<Link to={{ page: "vms" }}>To the virtual machines</Link>}
      >
        <code>{path}</code> leads nowhere: the link is wrong, or of another version of this page.
      </Empty>
    </PageSection>
  );
}
