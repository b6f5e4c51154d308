-- Read all heartbeats in one round trip.
-- KEYS: set of node names. ARGV: what a heartbeat's key starts with.
-- Returns node, text (false when expired), milliseconds left; node, text, ...
local found = {}
for _, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local key = ARGV[1] .. node
  found[#found + 1] = node
  found[#found + 1] = redis.call('GET', key)
  found[#found + 1] = redis.call('PTTL', key)
end
return found
