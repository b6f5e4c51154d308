-- Take the lease when nobody holds it.
-- KEYS: lease, counter of fencing numbers. ARGV: random part of the token, lease in milliseconds.
-- Returns the fencing number, or 0 when another holds the lease.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local fence = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], fence .. ':' .. ARGV[1], 'PX', ARGV[2])
return fence
