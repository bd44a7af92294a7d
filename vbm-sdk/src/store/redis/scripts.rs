//! Every script of the store. Each runs as a whole or not at all, and tells numbers as text: a revision may be
//! larger than what Redis makes of a Lua number.
//!
//! Scripts that write begin with a bare `#!lua`: Redis then refuses them before their first command when its
//! memory is full or its disk fails, so that nothing is done by halves.

/// A transaction.
///
/// KEYS: meta, index, values, revisions, log, done.
/// ARGV: id of the transaction, how long it is remembered in ms, most revisions of the log, most bytes of the log,
/// number of comparisons; of each key and revision ('' for absent); then of each write 'P', key, value or 'D', key.
/// Gives `done`, its revision and the lineage, `same` and the store's revision when nothing was changed, or `conflict` and a key.
pub(super) const TXN: &str = r"#!lua
local meta, index, values, revisions, log, done = unpack(KEYS)
local recorded = redis.call('GET', done)
local m = redis.call('HMGET', meta, 'revision', 'oldest', 'bytes', 'lineage')
if recorded then return {'done', recorded, m[4] or ''} end
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  if (redis.call('HGET', revisions, ARGV[at]) or '') ~= ARGV[at + 1] then return {'conflict', ARGV[at]} end
  at = at + 2
end
local function text(number) return string.format('%.0f', number) end
local revision, oldest, bytes = tonumber(m[1] or 0), tonumber(m[2] or 1), tonumber(m[3] or 0)
local new = text(revision + 1)
local entry = {'#', ARGV[1]}
while at <= #ARGV do
  local key = ARGV[at + 1]
  if ARGV[at] == 'P' then
    local value = ARGV[at + 2]
    redis.call('HSET', values, key, value)
    if redis.call('HSET', revisions, key, new) == 1 then redis.call('ZADD', index, 0, key) end
    entry[#entry + 1] = key
    entry[#entry + 1] = '+' .. value
    bytes = bytes + #key + #value
    at = at + 3
  else
    if redis.call('HDEL', revisions, key) == 1 then
      redis.call('HDEL', values, key)
      redis.call('ZREM', index, key)
      entry[#entry + 1] = key
      entry[#entry + 1] = '-'
      bytes = bytes + #key
    end
    at = at + 2
  end
end
if #entry == 2 then return {'same', text(revision)} end
revision = revision + 1
redis.call('XADD', log, new .. '-1', unpack(entry))
while revision - oldest + 1 > tonumber(ARGV[3]) or (bytes > tonumber(ARGV[4]) and revision > oldest) do
  local forgotten = redis.call('XRANGE', log, text(oldest), text(oldest))[1]
  if forgotten then
    local fields = forgotten[2]
    for n = 3, #fields, 2 do bytes = bytes - #fields[n] - #fields[n + 1] + 1 end
    redis.call('XDEL', log, forgotten[1])
  end
  oldest = oldest + 1
end
redis.call('HSET', meta, 'revision', new, 'oldest', text(oldest), 'bytes', text(bytes))
redis.call('SET', done, new, 'PX', ARGV[2])
return {'done', new, m[4] or ''}
";

/// One entry.
///
/// KEYS: values, revisions. ARGV: key. Gives revision and value, or nothing.
pub(super) const GET: &str = r"#!lua flags=no-writes
local revision = redis.call('HGET', KEYS[2], ARGV[1])
if not revision then return {} end
return {revision, redis.call('HGET', KEYS[1], ARGV[1])}
";

/// A page, as one picture.
///
/// KEYS: meta, index, values, revisions. ARGV: where it begins and ends (as of ZRANGE ... BYLEX), most entries.
/// Gives the store's revision, whether more follow ('1' or ''), then key, revision and value of each entry.
pub(super) const LIST: &str = r"#!lua flags=no-writes
local limit = tonumber(ARGV[3])
local keys = redis.call('ZRANGE', KEYS[2], ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, limit + 1)
local page = {redis.call('HGET', KEYS[1], 'revision') or '0', #keys > limit and '1' or ''}
for n = 1, math.min(#keys, limit) do
  page[#page + 1] = keys[n]
  page[#page + 1] = redis.call('HGET', KEYS[4], keys[n])
  page[#page + 1] = redis.call('HGET', KEYS[3], keys[n])
end
return page
";

/// A part of the log.
///
/// KEYS: meta, log. ARGV: after which revision, prefix of keys, most revisions, bytes after which it stops.
/// Gives newest and oldest revision, the last one looked at ('' when the log does not hold what comes next), then
/// revision, key and '+' value or '-' of each change.
pub(super) const LOG: &str = r"#!lua flags=no-writes
local function text(number) return string.format('%.0f', number) end
local m = redis.call('HMGET', KEYS[1], 'revision', 'oldest')
local newest, oldest = tonumber(m[1] or 0), tonumber(m[2] or 1)
local after, prefix, most, enough = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local part = {text(newest), text(oldest), ''}
if after > newest or after + 1 < oldest then return part end
local upto, bytes = after, 0
while upto < newest and upto - after < most and bytes < enough do
  local entries = redis.call('XRANGE', KEYS[2], text(upto + 1), '+', 'COUNT', 16)
  if #entries == 0 then return part end
  for _, entry in ipairs(entries) do
    if upto - after >= most or bytes >= enough then break end
    local revision, fields = string.match(entry[1], '^%d+'), entry[2]
    if tonumber(revision) ~= upto + 1 then return part end
    for n = 3, #fields, 2 do
      if string.sub(fields[n], 1, #prefix) == prefix then
        part[#part + 1] = revision
        part[#part + 1] = fields[n]
        part[#part + 1] = fields[n + 1]
        bytes = bytes + #fields[n] + #fields[n + 1]
      end
    end
    upto = upto + 1
  end
end
part[3] = text(upto)
return part
";

/// The first word over a new connection: is this the store that this process knew?
///
/// A server that lost writes (it was killed without an append-only file, or replaced by an older copy) gets a new lineage, and its
/// count jumps beyond all that this process has seen: no revision stands for two transactions, and watchers, whose place is
/// no longer in the log, are told to list again.
///
/// KEYS: meta, log. ARGV: lineage, revision and transaction id that this process knew last ('' and 0 at first), a new lineage, the jump.
/// Gives revision, lineage, and '1' when writes were lost.
pub(super) const RESUME: &str = r"#!lua
local function text(number) return string.format('%.0f', number) end
local m = redis.call('HMGET', KEYS[1], 'revision', 'oldest', 'lineage')
local revision, oldest, lineage = tonumber(m[1] or 0), tonumber(m[2] or 1), m[3]
local knew, known = ARGV[1], tonumber(ARGV[2])
local lost = false
if knew == '' then
  if lineage then return {text(revision), lineage, ''} end
elseif knew ~= lineage then
  -- Another history; unless its log begins beyond all that was known, it would be taken for the same.
  lost = known > 0 and known + 1 >= oldest
else
  lost = known > revision
  if not lost and known >= oldest then
    local entry = redis.call('XRANGE', KEYS[2], text(known), text(known))[1]
    lost = not entry or entry[2][2] ~= ARGV[3]
  end
end
if lost then
  revision = math.max(revision, known) + tonumber(ARGV[5])
  lineage = nil
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'oldest', text(revision + 1), 'bytes', '0')
end
if not lineage then
  lineage = ARGV[4]
  redis.call('HSET', KEYS[1], 'revision', text(revision), 'lineage', lineage)
end
return {text(revision), lineage, lost and '1' or ''}
";
