//! Numbers that only grow: who commands, and what is wanted.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! counter {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl $name {
            /// The number after this one.
            #[must_use]
            pub const fn next(self) -> Self { Self(self.0 + 1) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}

counter! {
    /// The fencing number of a leadership. Whoever holds a higher one commands; commands with a lower one are refused.
    Epoch;
    /// The number of a desired state. Grows with each change of a spec; a status says which one it has reached.
    Generation;
}
