//! Features and profiles (MMC-5, section 5 and GET CONFIGURATION, section 6.6).

use super::super::lun::{Lun, reply};
use super::super::{Cdb, Sense, Task, Transport};
use super::BLOCK;

/// Profile of a CD-ROM.
const CD_ROM: u16 = 0x08;
/// Profile of a DVD-ROM.
const DVD_ROM: u16 = 0x10;

/// A feature: its code, version, whether it always applies, whether it does now, and its data.
struct Feature {
    code: u16,
    version: u8,
    persistent: bool,
    current: bool,
    data: Vec<u8>,
}

impl Lun {
    fn profile(&self) -> Option<u16> {
        self.drive.is_ready().then(|| if self.is_dvd() { DVD_ROM } else { CD_ROM })
    }

    fn features(&self) -> Vec<Feature> {
        let profile = self.profile();
        let (cd, dvd) = (profile == Some(CD_ROM), profile == Some(DVD_ROM));
        let interface = match self.options.transport {
            Transport::Scsi => 1_u32,
            Transport::Atapi => 2,
        };
        let always =
            |code, version, data| Feature { code, version, persistent: true, current: true, data };
        let now = |code, version, current, data| Feature {
            code,
            version,
            persistent: false,
            current,
            data,
        };
        let profiles = [(DVD_ROM, dvd), (CD_ROM, cd)].into_iter().flat_map(|(code, current)| {
            let [high, low] = code.to_be_bytes();
            [high, low, u8::from(current), 0]
        });
        let [block_high, block_low] = (BLOCK as u16).to_be_bytes();
        vec![
            always(0x0000, 0, profiles.collect()),
            // Core: the interface, and that events of a busy device can be asked for.
            always(0x0001, 2, {
                let mut data = interface.to_be_bytes().to_vec();
                data.extend([1, 0, 0, 0]);
                data
            }),
            // A tray that can be locked, ejected and loaded.
            always(0x0003, 2, vec![0x39, 0, 0, 0]),
            // Random readable, in sectors.
            now(0x0010, 0, cd || dvd, vec![0, 0, block_high, block_low, 0, 1, 0, 0]),
            now(0x001d, 0, cd, Vec::new()),
            // CD read, without C2 pointers and CD text.
            now(0x001e, 2, cd, vec![0, 0, 0, 0]),
            now(0x001f, 0, dvd, Vec::new()),
        ]
    }

    pub(in super::super) fn get_configuration(&self, cdb: &Cdb) -> Result<Task, Sense> {
        let start = cdb.u16(2);
        let wanted = |feature: &Feature| match cdb.u8(1) & 3 {
            0 => feature.code >= start,
            1 => feature.code >= start && feature.current,
            _ => feature.code == start,
        };
        if cdb.u8(1) & 3 == 3 {
            return Err(Sense::INVALID_FIELD);
        }
        let mut data = vec![0; 6];
        data.extend(self.profile().unwrap_or(0).to_be_bytes());
        for feature in self.features().into_iter().filter(wanted) {
            data.extend(feature.code.to_be_bytes());
            let flags = u8::from(feature.persistent) << 1 | u8::from(feature.current);
            data.extend([feature.version << 2 | flags, feature.data.len() as u8]);
            data.extend(feature.data);
        }
        let len = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&len.to_be_bytes());
        Ok(reply(data, cdb.u16(7)))
    }
}
