//! Every script of the bus. Each runs once a heartbeat or once a life, never once a message.

/// Renews presence unless another process took the path.
/// KEYS: presence. ARGV: value, token, ttl ms. Returns the boot id of the other, or ''.
pub(super) const RENEW: &str = r"
local now = redis.call('GET', KEYS[1])
if now then
  local ok, member = pcall(cjson.decode, now)
  if ok and type(member) == 'table' and member.token ~= ARGV[2] then return tostring(member.boot_id) end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ''
";

/// Takes a member off presence if it is still its own.
/// KEYS: presence. ARGV: token. Returns 1 when it was.
pub(super) const RETIRE: &str = r"
local now = redis.call('GET', KEYS[1])
if now then
  local ok, member = pcall(cjson.decode, now)
  if ok and type(member) == 'table' and member.token ~= ARGV[1] then return 0 end
end
redis.call('DEL', KEYS[1])
return 1
";

/// Forgets the queue of a node when it is empty and nobody serves it.
/// KEYS: presence, stream.
pub(super) const FORGET_NODE: &str = r"
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[2]) end
return 1
";

/// Forgets an anycast queue when it is empty and nobody serves it; leaves the group otherwise.
/// KEYS: liveness, stream. ARGV: now in ms, group, consumer.
pub(super) const FORGET_ANY: &str = r"
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then return 1 end
if redis.call('XLEN', KEYS[2]) == 0 and redis.call('ZCARD', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
  return 1
end
local held = redis.pcall('XPENDING', KEYS[2], ARGV[2], '-', '+', 1, ARGV[3])
if type(held) == 'table' and not held.err and #held == 0 then
  redis.pcall('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3])
end
return 1
";

/// Forgets the broadcasts of a shard when nobody is left there.
/// KEYS: liveness, stream. ARGV: now in ms.
pub(super) const FORGET_BROADCAST: &str = r"
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
return 1
";
