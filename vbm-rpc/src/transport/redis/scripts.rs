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

/// Everything about one lease. Its value is `epoch holder`; a value that is none counts as held by nobody.
/// KEYS: lease, epoch. ARGV: word, holder, ttl ms, epoch or floor, blank allowed (0 or 1).
/// Returns the words that `lease::read` knows.
pub(super) const LEASE: &str = r"
local word, me, ttl, given = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local value = redis.call('GET', KEYS[1])
local epoch, holder
if value then epoch, holder = string.match(value, '^(%d+) (.+)$') end
local kept = redis.call('GET', KEYS[2])
local last = tonumber(kept or '0') or 0
local function hold(number)
  local text = string.format('%.0f', number)
  redis.call('SET', KEYS[2], text)
  redis.call('SET', KEYS[1], text .. ' ' .. me, 'PX', ttl)
  return {'mine', text}
end
if holder and holder == me then
  if word == 'take' then
    redis.call('PEXPIRE', KEYS[1], ttl)
    return {'mine', epoch}
  end
  if word == 'raise' then return hold(math.max(last, given, tonumber(epoch)) + 1) end
  if word == 'renew' and tonumber(epoch) == given then
    redis.call('PEXPIRE', KEYS[1], ttl)
    if last < given then redis.call('SET', KEYS[2], epoch) end
    return {'mine', epoch}
  end
  if word == 'release' then
    redis.call('DEL', KEYS[1])
    return {'free', epoch}
  end
end
if holder then
  return {'held', epoch, holder, string.format('%.0f', math.max(redis.call('PTTL', KEYS[1]), 0))}
end
if word == 'take' and (kept or ARGV[5] == '1') then return hold(math.max(last, given) + 1) end
if not kept then return {'blank'} end
return {'free', string.format('%.0f', last)}
";
