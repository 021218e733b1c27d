//! What a machine says of itself. Claims to whoever reads them.

use std::path::Path;

use palisade_protocol::bounded::Text;
use palisade_protocol::control::HostFacts;
use uuid::Uuid;

/// Reads host name, SMBIOS product UUID (root only), boot id and kernel release;
/// what cannot be read is left out.
pub fn facts() -> HostFacts {
    let text = |path: &str| {
        std::fs::read_to_string(Path::new(path))
            .map(|text| text.trim().to_owned())
            .ok()
    };
    let uuid = |path: &str| text(path).and_then(|text| Uuid::try_parse(&text).ok());
    HostFacts {
        hostname: Text::cut(&text("/proc/sys/kernel/hostname").unwrap_or_default()),
        product_uuid: uuid("/sys/class/dmi/id/product_uuid"),
        boot_id: uuid("/proc/sys/kernel/random/boot_id"),
        kernel: Text::cut(&text("/proc/sys/kernel/osrelease").unwrap_or_default()),
    }
}
